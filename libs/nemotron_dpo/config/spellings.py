"""Rewrite the spellings that a config may use (NeMo-RL's, the documented default's, aliases) into the one of schema.py.

This works on the plain tree, in place, before the dataclasses are built. A key that it does not know stays in the tree, for the
unknown-key check.
"""

from __future__ import annotations

from typing import Any

from nemotron_dpo.config.dpo_spellings import canonical_dpo, dpo_spellings
from nemotron_dpo.config.megatron_spellings import MEGATRON_ADAM, MEGATRON_SCHEDULE, Tree, drop_empty, megatron_optimizer
from nemotron_dpo.errors import UserError

DTENSOR_NAMES = {
    "tensor_parallel_size": "tensor_model_parallel_size",
    "context_parallel_size": "context_parallel_size",
    "expert_parallel_size": "expert_model_parallel_size",
    "sequence_parallel": "sequence_parallel",
    "activation_checkpointing": "activation_checkpointing",
}
# name in lora_cfg -> (name in the peft section, default in lora_cfg)
LORA_NAMES = {
    "enabled": ("enabled", True),
    "dim": ("dim", 8),
    "alpha": ("alpha", 32),
    "dropout": ("dropout", 0.0),
    "dropout_position": ("dropout_position", "post"),
    "lora_A_init": ("lora_A_init_method", "xavier"),
}
_ADAMW = ("adamw", "adam", "torch.optim.adamw")
# The template for an explicit `chat_template: null`. NeMo-RL then joins the contents of the messages unchanged. Its code puts
# the tokenizer's BOS before the first message and its EOS after the last response; here the template does so.
PASS_THROUGH = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if messages and messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
)
_TORCH_SCHEDULERS = "torch.optim.lr_scheduler."
_DATASET_KEYS = (
    "path", "prompt_key", "chosen_key", "rejected_key", "limit", "on_error", "split", "subset", "row_format",
    "chosen_reward_key", "rejected_reward_key", "source_name", "weight",
)  # fmt: skip
_PATH_ALIASES = ("data_path", "prompt_file")
# NeMo-RL's name for the form of the rows in the files of `data_path` -> our name; None if the rows show their form themselves
ROW_FORMS = {"PreferenceDataset": "ranked", "BinaryPreferenceDataset": None}


def canonical(tree: Tree) -> tuple[Tree, dict[str, str]]:
    """`tree` with every accepted spelling rewritten, and the keys that another setting makes idle (dotted key -> reason).

    A section that is no mapping is left for the type check. Raises UserError where two spellings of one key disagree, and for a
    value that is not built.
    """
    policy, data = tree.get("policy"), tree.get("data")
    idle: dict[str, str] = {}
    if isinstance(policy, dict):
        _template(policy)
        idle = _megatron_backend(policy) | megatron_optimizer(policy)
        _hf_overrides(policy)
        _optimizer(policy)
        _scheduler(policy)
    if isinstance(data, dict):
        _datasets(data)
    if isinstance(dpo := tree.get("dpo"), dict):
        canonical_dpo(dpo)
    return tree, idle


def spellings(key: str) -> list[str]:
    """The dotted keys under which a config may give the value of the dotted `key`, beginning with `key`."""
    section, _, leaf = key.rpartition(".")
    if section == "dpo":
        return [f"dpo.{name}" for name in dpo_spellings(leaf)]
    if section == "policy.optimizer":
        theirs = {ours: name for name, ours in MEGATRON_ADAM.items()} | {"betas": "adam_beta1"}
        return [key, f"{section}.kwargs.{leaf}", f"policy.megatron_cfg.optimizer.{theirs.get(leaf, leaf)}"]
    if section == "policy.scheduler" and leaf in MEGATRON_SCHEDULE:
        return [key, f"policy.megatron_cfg.{MEGATRON_SCHEDULE[leaf]}"]
    if key == "policy.max_grad_norm":
        return [key, "policy.megatron_cfg.optimizer.clip_grad"]
    if section.startswith("data.") and leaf == "path":
        sections = [section, *(["data.validation"] if section == "data.validation.default" else [])]
        return [f"{place}.{name}" for place in sections for name in ("path", *_PATH_ALIASES, "dataset_name")]
    if section == "policy.megatron_cfg":
        return [key, *(f"policy.dtensor_cfg.{name}" for name, ours in DTENSOR_NAMES.items() if ours == leaf)]
    return [key]


def _template(policy: Tree) -> None:
    """Rewrite `chat_template`: "default" means the tokenizer's own template, like a missing key; null means PASS_THROUGH."""
    tokenizer = policy.get("tokenizer")
    if isinstance(tokenizer, dict) and "chat_template" in tokenizer:
        template = tokenizer.pop("chat_template")
        if template != "default":
            tokenizer["chat_template"] = PASS_THROUGH if template is None else template


def _hf_overrides(policy: Tree) -> None:
    """Refuse every override of the model's config but one: the coefficient of the auxiliary loss of its routers."""
    overrides = _mapping(policy, "hf_config_overrides", "policy")
    for key, value in overrides.items():
        if key == "router_aux_loss_coef":
            _set(policy["megatron_cfg"], "moe_aux_loss_coeff", value, "policy.megatron_cfg")
        else:
            remedy = "write it into config.json of the model's folder, and name that folder in policy.model_name"
            message = f"is {value!r}, which changes the model and is not built"
            raise UserError(message, field=f"policy.hf_config_overrides.{key}", remedy=remedy)
    del policy["hf_config_overrides"]


def _megatron_backend(policy: Tree) -> dict[str, str]:
    """Move the settings of both backends into megatron_cfg. As in NeMo-RL, a section with `enabled: false` does not count."""
    idle: dict[str, str] = {}
    for name in ("megatron_cfg", "dtensor_cfg"):
        if _mapping(policy, name, "policy").get("enabled") is False:
            policy[name] = {}
            idle[f"policy.{name}"] = f"is not enabled: as in NeMo-RL nothing in policy.{name} counts"
    megatron, dtensor = policy["megatron_cfg"], policy["dtensor_cfg"]
    ddp = megatron.get("distributed_data_parallel_config") or {}
    for name in ("use_distributed_optimizer", "grad_reduce_in_fp32"):
        if name in ddp:
            _set(megatron, name, ddp.pop(name), "policy.megatron_cfg")
    for theirs, ours in DTENSOR_NAMES.items():
        if (size := dtensor.pop(theirs, None)) is not None:
            _set(megatron, ours, size, "policy.megatron_cfg")
    idle |= _peft(megatron, dtensor)
    drop_empty(megatron, "distributed_data_parallel_config")
    drop_empty(policy, "dtensor_cfg")
    return idle


def _peft(megatron: Tree, dtensor: Tree) -> dict[str, str]:
    """Move LoRA settings of the DTensor backend (lora_cfg) into the peft section.

    An enabled lora_cfg can only apply to all linear layers, because its layers have other names than ours. Raises UserError
    where it names layers.
    """
    peft, lora = _mapping(megatron, "peft", "policy.megatron_cfg"), dtensor.get("lora_cfg")
    if peft.get("lora_dtype") == "None":  # NeMo-RL's own configs write null as this text
        peft["lora_dtype"] = None
    place = "policy.dtensor_cfg.lora_cfg"
    if not isinstance(lora, dict):
        return {}
    if lora.get("enabled") is not True:
        del dtensor["lora_cfg"]
        return {place: "is not enabled"}
    by_name = lora.pop("match_all_linear", True) is False
    for key in ("target_modules", "exclude_modules"):
        if lora.pop(key, None) and (by_name or key == "exclude_modules"):
            remedy = f"name ours in policy.megatron_cfg.peft.{key}"
            raise UserError("names layers of another backend", field=f"{place}.{key}", remedy=remedy)
    if by_name:
        raise UserError("is false and no layer is named", field=f"{place}.match_all_linear", remedy="leave it true")
    if not peft or peft.get("enabled") is not True:
        megatron["peft"] = peft = {}
    for theirs, (ours, default) in LORA_NAMES.items():
        _set(peft, ours, lora.pop(theirs, default), "policy.megatron_cfg.peft")
    drop_empty(dtensor, "lora_cfg")
    return {}


def _optimizer(policy: Tree) -> None:
    optimizer = _mapping(policy, "optimizer", "policy")
    drop_empty(policy, "optimizer")
    _mapping(optimizer, "kwargs", "policy.optimizer")
    del optimizer["kwargs"]  # its entries were copied one level up when the config layers were merged
    name = optimizer.get("name")
    if name is not None and str(name).lower() not in _ADAMW:
        raise UserError(f'is "{name}"', field="policy.optimizer.name", remedy="only AdamW is built")
    if name is not None:
        optimizer["name"] = "adamw"


def _scheduler(policy: Tree) -> None:
    scheduler = policy.get("scheduler")
    if isinstance(scheduler, dict) and str(scheduler.get("name")).startswith(_TORCH_SCHEDULERS):
        scheduler = [scheduler]
    if isinstance(scheduler, list):
        policy["scheduler"] = _torch_chain(scheduler)


def _torch_chain(entries: list[Any]) -> Tree:
    schedulers: list[list[Any]] = []
    milestones: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict) and set(entry) == {"milestones"} and not milestones:
            milestones = entry["milestones"] if isinstance(entry["milestones"], list) else [entry["milestones"]]
        elif isinstance(entry, dict) and set(entry) <= {"name", "kwargs"} and "name" in entry:
            schedulers.append([str(entry["name"]).removeprefix(_TORCH_SCHEDULERS), entry.get("kwargs") or {}])
        else:
            raise UserError("holds an entry that is neither {name, kwargs} nor {milestones}", field="policy.scheduler")
    if not schedulers or len(milestones) != len(schedulers) - 1:
        counts = f"has {len(schedulers)} schedulers and {len(milestones)} milestones"
        raise UserError(counts, field="policy.scheduler", remedy="a milestone belongs between each two schedulers")
    return {"name": "torch", "warmup_steps": 0, "schedulers": schedulers, "milestones": milestones}


def _datasets(data: Tree) -> None:
    shared = _mapping(data, "default", "data")
    for alias in _PATH_ALIASES:
        if shared.get(alias) is None:  # NVIDIA's own configs set it to null
            shared.pop(alias, None)
    given = {key: shared.pop(key) for key in (*_DATASET_KEYS, "dataset_name") if key in shared}
    given |= {"dataset_name": name} if (name := data.pop("dataset_name", None)) and not given.get("dataset_name") else {}
    drop_empty(data, "default")
    has_own = _names_rows(data.get("train"))
    if not isinstance(data.get("train"), list):
        _mapping(data, "train", "data")
    data["train"] = _rows(data["train"], given, "data.train")
    validation = data.get("validation")
    if isinstance(validation, list):
        data["validation"] = {"default": validation}
    validation = _mapping(data, "validation", "data")
    if any(key in validation for key in (*_DATASET_KEYS, *_PATH_ALIASES, "dataset_name")):
        validation = {"default": validation}
    for name, path in _mapping(data, "val_data_paths", "data").items():
        validation[name] = {"path": path}
    data.pop("val_data_paths", None)
    for name, dataset in validation.items():
        is_default = has_own and not _names_rows(dataset)
        validation[name] = rows = _rows(dataset, given, f"data.validation.{name}")
        if is_default and rows.get("path") is not None:
            rows["is_default"] = True
    data["validation"] = validation


def _names_rows(dataset: Any) -> bool:
    """Whether `dataset` itself says where its rows are."""
    names = (*_PATH_ALIASES, "path", "dataset_name")
    return isinstance(dataset, list) or (isinstance(dataset, dict) and any(dataset.get(name) is not None for name in names))


def _rows(dataset: Any, given: Tree, place: str) -> Tree:
    """One data set, or a list of some, in our spelling; NeMo-RL joins those of a list."""
    if isinstance(dataset, dict):
        _dataset(dataset, given, place)
        return dataset
    if not isinstance(dataset, list):
        raise UserError(f"is {dataset!r} where a mapping with a path is due", field=place)
    if not dataset:
        raise UserError("is an empty list", field=place, remedy="name data, or leave it null")
    parts = [{"path": part} if isinstance(part, str) else part for part in dataset]
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            raise UserError(f"is {part!r} where a mapping with a path is due", field=f"{place}.{number}")
        _dataset(part, given, f"{place}.{number}")
        if part.get("path") is None:
            raise UserError("has no path", field=f"{place}.{number}", remedy="give path or dataset_name")
    return {"parts": parts}


def _dataset(dataset: Tree, given: Tree, place: str) -> None:
    for alias in _PATH_ALIASES:
        if dataset.get(alias) is not None:
            _set(dataset, "path", dataset[alias], place)
        dataset.pop(alias, None)
    for key, value in given.items():
        if dataset.get(key) is None:
            dataset[key] = value
    _named(dataset)


def _named(dataset: Tree) -> None:
    """Rewrite `dataset_name`, which is either the name of a form of rows (a key of ROW_FORMS) or the place of the data.

    The place of the data is used only where no path is given: a config that gives both means the path.
    """
    name = dataset.pop("dataset_name", None)
    if name in ROW_FORMS:
        if dataset.get("path") is not None and dataset.get("row_format") is None:
            dataset["row_format"] = ROW_FORMS[name]
    elif name is not None and dataset.get("path") is None:
        dataset["path"] = name


def _set(section: Tree, key: str, value: Any, place: str) -> None:
    """Set `key`, a canonical name, to `value`. Raises UserError where another spelling has set it to another value."""
    if section.get(key) is not None and section[key] != value:
        raise UserError(f"is {section[key]} and, under another name, {value}", field=f"{place}.{key}", remedy="set one of them")
    section[key] = value


def _mapping(section: Tree, key: str, place: str) -> Tree:
    value = section.get(key)
    if value is None:
        value = section[key] = {}
    if not isinstance(value, dict):
        raise UserError(f"is {value!r} where a mapping is due", field=f"{place}.{key}")
    return value

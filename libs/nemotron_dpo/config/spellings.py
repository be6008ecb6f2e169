"""Rewrite the spellings that a config may use (NeMo-RL's, the documented default's, aliases) into the one of schema.py.

This works on the plain tree, in place, before the dataclasses are built. A key that it does not know stays in the tree, for the
unknown-key check.
"""

from __future__ import annotations

from typing import Any

from nemotron_dpo.config.data_spellings import PATH_ALIASES, canonical_data
from nemotron_dpo.config.dpo_spellings import canonical_dpo, dpo_spellings
from nemotron_dpo.config.megatron_spellings import MEGATRON_ADAM, MEGATRON_SCHEDULE, megatron_optimizer
from nemotron_dpo.config.tree import Tree, drop_empty, mapping, set_key
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


def canonical(tree: Tree) -> tuple[Tree, dict[str, str]]:
    """`tree` with every accepted spelling rewritten, and the keys that another setting makes idle (dotted key -> reason).

    A section that is no mapping is left for the type check. Raises UserError where two spellings of one key disagree, and for a
    value that is not built.
    """
    policy, data = tree.get("policy"), tree.get("data")
    idle: dict[str, str] = {}
    if isinstance(policy, dict):
        _template(policy)
        _automodel(policy)
        idle = _megatron_backend(policy) | megatron_optimizer(policy)
        _hf_overrides(policy)
        _optimizer(policy)
        _scheduler(policy)
    if isinstance(data, dict):
        canonical_data(data)
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
        return [f"{place}.{name}" for place in sections for name in ("path", *PATH_ALIASES, "dataset_name")]
    if key.startswith("policy.dtensor_cfg."):
        return [key, key.replace("dtensor_cfg", "automodel_cfg", 1)]
    if section == "data.validation.default":
        return [key, f"data.validation.{leaf}"]
    if section == "policy.megatron_cfg":
        theirs = [name for name, ours in DTENSOR_NAMES.items() if ours == leaf]
        return [key, *(f"policy.{backend}.{name}" for name in theirs for backend in ("dtensor_cfg", "automodel_cfg"))]
    return [key]


def _template(policy: Tree) -> None:
    """Rewrite `chat_template`: "default" means the tokenizer's own template, like a missing key; null means PASS_THROUGH."""
    tokenizer = policy.get("tokenizer")
    if isinstance(tokenizer, dict) and "chat_template" in tokenizer:
        template = tokenizer.pop("chat_template")
        if template != "default":
            tokenizer["chat_template"] = PASS_THROUGH if template is None else template


def _automodel(policy: Tree) -> None:
    """Rewrite `automodel_cfg`, as newer versions of NeMo-RL call dtensor_cfg."""
    section = mapping(policy, "automodel_cfg", "policy")
    dtensor = mapping(policy, "dtensor_cfg", "policy")
    for key, value in section.items():
        set_key(dtensor, key, value, "policy.dtensor_cfg")
    policy["dtensor_cfg"] = dtensor
    del policy["automodel_cfg"]


def _hf_overrides(policy: Tree) -> None:
    """Refuse every override of the model's config but one: the coefficient of the auxiliary loss of its routers."""
    overrides = mapping(policy, "hf_config_overrides", "policy")
    for key, value in overrides.items():
        if key == "router_aux_loss_coef":
            set_key(policy["megatron_cfg"], "moe_aux_loss_coeff", value, "policy.megatron_cfg")
        else:
            remedy = "write it into config.json of the model's folder, and name that folder in policy.model_name"
            message = f"is {value!r}, which changes the model and is not built"
            raise UserError(message, field=f"policy.hf_config_overrides.{key}", remedy=remedy)
    del policy["hf_config_overrides"]


def _megatron_backend(policy: Tree) -> dict[str, str]:
    """Move the settings of both backends into megatron_cfg. As in NeMo-RL, a section with `enabled: false` does not count."""
    idle: dict[str, str] = {}
    for name in ("megatron_cfg", "dtensor_cfg"):
        if mapping(policy, name, "policy").get("enabled") is False:
            policy[name] = {}
            idle[f"policy.{name}"] = f"is not enabled: as in NeMo-RL nothing in policy.{name} counts"
    megatron, dtensor = policy["megatron_cfg"], policy["dtensor_cfg"]
    ddp = megatron.get("distributed_data_parallel_config") or {}
    for name in ("use_distributed_optimizer", "grad_reduce_in_fp32"):
        if name in ddp:
            set_key(megatron, name, ddp.pop(name), "policy.megatron_cfg")
    for theirs, ours in DTENSOR_NAMES.items():
        if (size := dtensor.pop(theirs, None)) is not None:
            set_key(megatron, ours, size, "policy.megatron_cfg")
    idle |= _peft(megatron, dtensor)
    drop_empty(megatron, "distributed_data_parallel_config")
    drop_empty(policy, "dtensor_cfg")
    return idle


def _peft(megatron: Tree, dtensor: Tree) -> dict[str, str]:
    """Move LoRA settings of the DTensor backend (lora_cfg) into the peft section.

    An enabled lora_cfg can only apply to all linear layers, because its layers have other names than ours. Raises UserError
    where it names layers.
    """
    peft, lora = mapping(megatron, "peft", "policy.megatron_cfg"), dtensor.get("lora_cfg")
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
        set_key(peft, ours, lora.pop(theirs, default), "policy.megatron_cfg.peft")
    drop_empty(dtensor, "lora_cfg")
    return {}


def _optimizer(policy: Tree) -> None:
    optimizer = mapping(policy, "optimizer", "policy")
    drop_empty(policy, "optimizer")
    mapping(optimizer, "kwargs", "policy.optimizer")
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

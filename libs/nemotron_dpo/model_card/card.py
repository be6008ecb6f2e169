"""README.md of an exported model: front matter that the Hugging Face hub reads, then what it is, is made of, and how again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemotron_dpo import machine_errors
from nemotron_dpo.model_card.origin import Origin
from nemotron_dpo.run_state import how_extended

NAME = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
_READS, _SEES = "text-generation", "image-text-to-text"  # tasks, as the hub calls them
# key of the config -> how it is called here
_SETTINGS = {
    "dpo.preference_loss": "objective",
    "dpo.reference_policy_kl_penalty": "beta (reference_policy_kl_penalty)",
    "dpo.preference_loss_weight": "weight of the preference loss",
    "dpo.sft_loss_weight": "weight of the SFT loss",
    "policy.optimizer.lr": "learning rate",
    "policy.optimizer.weight_decay": "weight decay",
    "policy.scheduler": "schedule",
    "policy.train_global_batch_size": "pairs in a step",
    "policy.max_total_sequence_length": "longest sequence, in tokens",
    "policy.max_grad_norm": "gradient norm clipped at",
    "policy.precision": "precision of training",
    "dpo.seed": "seed",
}
_FIGURES = ("loss", "accuracy", "rewards_margin_mean", "rewards_chosen_mean", "rewards_rejected_mean", "kl_chosen")


def write(folder: Path, origin: Origin, form: str) -> None:
    """Write the card of the model in `folder`, a Hugging Face folder or (`form` "peft") one of adapters."""
    text = card(origin, form, precision_of(folder, form), sees=sees(folder, form))
    (folder / NAME).write_text(text, encoding="utf-8")


def card(origin: Origin, form: str, precision: str | None, *, sees: bool = False) -> str:
    """The whole file; `sees` is whether the model reads images too."""
    front = yaml.safe_dump(_front_matter(origin, form, _SEES if sees else _READS), sort_keys=False, allow_unicode=True)
    parts = ["\n".join(_about(origin, precision)), _use(form, sees=sees), *_tables(origin), *_again(origin)]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def sees(folder: Path, form: str) -> bool:
    """Whether the model in `folder`, or the one that its adapters are beside, has images around its text model."""
    try:
        if form == "peft":
            modules = json.loads((folder / "adapter_config.json").read_bytes())["target_modules"]
            return any(name.startswith("model.language_model.") for name in modules)
        return "vision_config" in json.loads((folder / "config.json").read_bytes())
    except (*machine_errors.NOT_THERE, ValueError, KeyError, TypeError):
        return False


def precision_of(folder: Path, form: str) -> str | None:
    """The precision of the weights in `folder`, None where a folder of adapters does not say it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        found = config.get("dtype") or config.get("torch_dtype")
        return None if found is None or form == "peft" else str(found)
    except (*machine_errors.NOT_THERE, ValueError):
        return None


def base_of(origin: Origin) -> tuple[str | None, str | None]:
    """(id of the hub, name for people) of what was trained: what the run began with, whatever its config names beside that."""
    lineage = origin.facts.get("lineage")
    began = lineage.get("policy") if isinstance(lineage, Mapping) else None
    name = began or origin.setting("policy.model_name")
    if name is None:
        return None, None
    found, text = _SNAPSHOT.search(str(name)), str(name)
    known = text if _HUB_ID.fullmatch(text) and not Path(text).exists() else None
    known = f"{found[1]}/{found[2]}" if found else known
    return known, known or Path(text).name


def _front_matter(origin: Origin, form: str, task: str) -> dict[str, Any]:
    base, _ = base_of(origin)
    objective = origin.setting("dpo.preference_loss")
    names = [objective] if isinstance(objective, str) else list(objective) if isinstance(objective, Mapping) else []
    tags = dict.fromkeys([*(["preference-optimization", *map(str, names)] if origin.step is not None else []), "nemotron-dpo"])
    matter: dict[str, Any] = {"library_name": "peft" if form == "peft" else "transformers", "pipeline_tag": task}
    matter |= {"base_model": base} if base else {}
    return {**matter, "tags": list(tags)}


def _about(origin: Origin, precision: str | None) -> Iterator[str]:
    _, base = base_of(origin)
    yield f"# {base}, aligned" if origin.step is not None and base else "# Model"
    yield ""
    if origin.step is None:
        yield "Exported by [nemotron-dpo](https://pypi.org/project/nemotron-dpo/); no run of it is on record beside its source."
    else:
        last = origin.setting("dpo.max_num_steps")
        of = f" of at most {last}" if last is not None else ""
        yield f"Step {origin.step}{of} of preference optimization by nemotron-dpo, from {base or 'an unknown policy'}."
    if precision is not None:
        yield f"Weights are in {precision}."
    yield "Evaluate it for your own use before you rely on it: the figures below are of the pairs that the run saw or held out."


def _use(form: str, *, sees: bool) -> str:
    if form == "peft":
        return f"## Use\n\n```python\n{_PEFT_BESIDE if sees else _PEFT}```"
    return f"## Use\n\n```python\n{_SEEING if sees else _TRANSFORMERS}```\n\n```sh\nvllm serve FOLDER_OR_ID\n```"


_PEFT = """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER_OR_ID")
"""
_PEFT_BESIDE = """\
from peft import PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText

base = PeftConfig.from_pretrained("FOLDER_OR_ID").base_model_name_or_path
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype="auto"), "FOLDER_OR_ID")
"""
_TRANSFORMERS = """\
from transformers import pipeline

chat = pipeline("text-generation", "FOLDER_OR_ID", dtype="auto")
print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=64)[0]["generated_text"][-1]["content"])
"""
_SEEING = """\
from transformers import pipeline

chat = pipeline("image-text-to-text", "FOLDER_OR_ID", dtype="auto")
messages = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
print(chat(text=messages, max_new_tokens=64, return_full_text=False)[0]["generated_text"])
"""


def _tables(origin: Origin) -> Iterator[str]:
    figures = dict(_figures(origin))
    yield _table("Figures", ("of this step", ""), figures)
    settings = {label: origin.setting(key) for key, label in _SETTINGS.items()}
    peft = origin.setting("policy.megatron_cfg.peft")
    if isinstance(peft, Mapping) and peft.get("enabled"):
        settings["LoRA"] = f"rank {peft.get('dim')}, alpha {peft.get('alpha')}"
    yield _table(
        "Settings", ("setting", ""), {label: _spelled(value) for label, value in settings.items() if value is not None}
    )
    lineage = origin.facts.get("lineage")
    digests = {name: str(value) for name, value in lineage.items()} if isinstance(lineage, Mapping) else {}
    yield _table("Made from", ("what", "digest"), {name: value for name, value in digests.items() if ":" in value})


def _figures(origin: Origin) -> Iterator[tuple[str, str]]:
    """Validations first; then the step's own pairs."""
    keys = sorted(origin.measured, key=lambda key: (not key.startswith("val"), key.partition(":")[0]))
    for key in keys:
        split, _, metric = key.partition(":")
        value = origin.measured[key]
        name = metric.partition("_")[2] if split == "val" and "_" in metric else metric
        if split in ("val", "train") and value is not None and name in _FIGURES:
            label = f"{metric.partition('_')[0]} {name}" if split == "val" else f"training {name}"
            yield label, f"{value:.4g}"


def _again(origin: Origin) -> Iterator[str]:
    commands = []
    argv = origin.record.get("argv")
    if isinstance(argv, list) and argv:
        commands.append(shlex.join([Path(str(argv[0])).name, *map(str, argv[1:])]))
    command = origin.facts.get("command")
    if not commands and isinstance(command, list) and command:
        commands.append(shlex.join([Path(str(command[0])).name, *map(str, command[1:])]))
    versions = origin.facts.get("versions")
    made_by = f"\n\nMade with {', '.join(map(str, versions))}." if isinstance(versions, list) else ""
    extended = how_extended(origin.facts)
    if commands:
        before = f"{extended}\n\n" if extended else ""
        yield f"## How to make it again\n\n{before}```sh\n" + "\n".join(commands) + f"\n```{made_by}"


def _table(title: str, head: tuple[str, str], rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [
        f"| {' | '.join(head)} |",
        "| --- | --- |",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()),
    ]
    return f"## {title}\n\n" + "\n".join(lines)


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    """As Markdown takes it in a table."""
    return re.sub(r"([|<>\\`*_\[\]])", r"\\\1", text).replace("\n", " ")

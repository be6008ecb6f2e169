"""Which program a config is of, and its own keys in TRL's names."""

from __future__ import annotations

import math
from typing import Any

from nemotron_dpo.config.theirs.given import Given
from nemotron_dpo.config.theirs.meanings import TheirRun
from nemotron_dpo.config.theirs.tables import NAMES, OWN
from nemotron_dpo.errors import UserError


def program_of(tree: dict[str, Any]) -> str:
    """The program whose config `tree` is, by keys that only it has."""
    if "stage" in tree or "finetuning_type" in tree:
        return "llama_factory"
    return "axolotl" if "base_model" in tree or "rl" in tree else "trl"


def given_of(tree: dict[str, Any], program: str, ignored: list[str], run: TheirRun) -> Given:
    """`tree` by TRL's names. Raises UserError where two names of one key disagree."""
    names, own = NAMES[program], OWN.get(program, {})
    given = Given(program, {}, {}, frozenset(ignored))
    for key, value in tree.items():
        if key in own or key in ignored:
            continue
        name = names.get(key, key)
        if name in given.values and given.values[name] != value:
            raise UserError(f"says otherwise than {given.spelled[name]}", field=key, remedy="set one of them")
        given.values[name], given.spelled[name] = value, key
    said = {key: value for key, value in tree.items() if key in own and key not in ignored}
    for key in said:
        given.spelled[key] = key
    given.values, said = given.fitting(given.values), given.fitting(said)
    {"axolotl": _axolotl, "llama_factory": _llama_factory}.get(program, _nothing)(given, said, run)
    return given


def _nothing(given: Given, said: dict[str, Any], run: TheirRun) -> None: ...


def _axolotl(given: Given, said: dict[str, Any], run: TheirRun) -> None:
    _algorithm(given, "rl", said.get("rl"), {"dpo": None, "ipo": "ipo", "simpo": "simpo", "orpo": "orpo"})
    adapter = said.get("adapter")
    if adapter not in (None, "", "lora"):
        given.refuse("adapter", f"is {adapter}, and lora alone is built")
    given.values["use_peft"] = adapter == "lora"
    given.texts["use_peft"] = f"adapter: {adapter}"
    if given.values.get("lora_target_modules") is False:
        del given.values["lora_target_modules"]
    for key in ("val_set_size", "plugins", "special_tokens"):
        if said.get(key):
            given.refuse(
                key, f"is {said[key]}, which has no counterpart", "give validation_data=FILE" if key == "val_set_size" else None
            )
    if sets := said.get("test_datasets"):
        given.refuse("test_datasets", f"names {len(sets)} sets by their types", "give validation_data=FILE and ignore it")
    if run.num_pairs is None and (said.get("evals_per_epoch") or said.get("saves_per_epoch")):
        key = "evals_per_epoch" if said.get("evals_per_epoch") else "saves_per_epoch"
        given.refuse(key, "is a part of an epoch, whose steps are not known", "say num_pairs=N")
    if "eval_strategy" not in given.values and (given.values.get("eval_steps") or said.get("evals_per_epoch")):
        given.values["eval_strategy"] = "steps"
    if "save_strategy" not in given.values and (given.values.get("save_steps") or said.get("saves_per_epoch")):
        given.values["save_strategy"] = "steps"
    _per_epoch(given, said, run)
    if given.values.get("wandb_project") and "report_to" not in given.values:
        given.values["report_to"] = "wandb"


def _per_epoch(given: Given, said: dict[str, Any], run: TheirRun) -> None:
    """evals_per_epoch and saves_per_epoch as steps, of the steps of one epoch."""
    processes = run.processes or 1
    pairs = int(given.get("per_device_train_batch_size") * given.get("gradient_accumulation_steps")) * processes
    for theirs, key in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        times = float(said.get(theirs) or 0)
        if times > 0 and run.num_pairs is not None:
            given.values[key] = max(1, math.ceil(run.num_pairs // pairs / times))
            given.spelled[key], given.texts[key] = theirs, f"{theirs}: {said[theirs]}"


def _llama_factory(given: Given, said: dict[str, Any], run: TheirRun) -> None:
    _algorithm(given, "stage", said.get("stage"), {"dpo": None})
    kind = said.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        given.refuse("finetuning_type", f"is {kind}, and lora and full are built")
    given.values["use_peft"] = kind == "lora"
    given.texts["use_peft"] = f"finetuning_type: {kind}"
    for key in ("quantization_bit", "default_system"):
        if said.get(key):
            given.refuse(key, f"is {said[key]}, which has no counterpart")
    for key, option in (("dataset", "train_data"), ("eval_dataset", "validation_data")):
        if said.get(key):
            remedy = f"give {option}=FILE and ignore=[{key}]"
            given.refuse(key, f"is {said[key]}, an entry of their dataset_info.json", remedy)
    if said.get("template"):
        text = f"{said['template']} is their name of a chat template; the tokenizer's own counts here"
        given.differ("template", text)
    if given.values.get("loss_type") == "kto_pair":
        given.refuse("loss_type", "is kto_pair, which is not built", "bco_pair is built alike")


def _algorithm(given: Given, key: str, value: Any, losses: dict[str, str | None]) -> None:
    """`value` of `key` is the algorithm; what it says of the loss."""
    if value not in losses:
        given.refuse(key, f"is {value}, and preference optimization is what is converted", f"{key}: {', '.join(losses)}")
    elif losses[value] and "loss_type" not in given.values:
        given.values["loss_type"], given.spelled["loss_type"] = losses[value], key

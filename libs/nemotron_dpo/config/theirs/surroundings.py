"""What is around the training: data sets, validation, checkpoints, trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_dpo.config.theirs.given import Given
from nemotron_dpo.config.theirs.meanings import UNLIMITED_STEPS, TheirRun, epoch_steps, every

_TRACKERS = {"wandb": "logger.wandb_enabled", "tensorboard": "logger.tensorboard_enabled", "mlflow": "logger.mlflow_enabled",
             "swanlab": "logger.swanlab_enabled"}  # fmt: skip
_METRICS = {"loss": "loss", "eval_loss": "loss", "rewards/accuracies": "accuracy", "eval_rewards/accuracies": "accuracy"}


@dataclass(frozen=True)
class Data:
    """Rows that the user names in place of the config's own."""

    train: str | None = None
    validation: str | None = None


def data(given: Given, named: Data) -> None:
    train = {"path": named.train} if named.train else _named(given, given.get("dataset_train_split"))
    if not train and not {"dataset", "datasets"} & {refusal.key for refusal in given.refusals}:
        given.refuse("dataset_name", "is not set", "give train_data=FILE")
    for key, value in train.items():
        theirs, note = ((), "train_data") if named.train else ((_from(key, "dataset_train_split"),), "")
        given.write(f"data.train.{key}", value, *theirs, note=note)
    if given.get("max_samples"):
        given.write("data.train.limit", int(given.get("max_samples")), "max_samples")
    held = {"path": named.validation} if named.validation else {}
    if not held and given.get("eval_strategy") != "no" and not given.get("datasets"):
        held = _named(given, given.get("dataset_test_split"))
    if not held:
        given.write("data.validation", None, "eval_strategy", note="no rows to validate on are named")
    for key, value in held.items():
        theirs, note = ((), "validation_data") if named.validation else ((_from(key, "dataset_test_split"),), "")
        given.write(f"data.validation.{key}", value, *theirs, note=note)


def _from(key: str, split: str) -> str:
    return {"split": split, "subset": "dataset_config"}.get(key, "dataset_name")


def _named(given: Given, split: str) -> dict[str, Any]:
    """The rows that the config names."""
    sets = given.get("datasets")
    if not sets:
        name, subset = given.get("dataset_name"), given.get("dataset_config")
        found = {"dataset_name": name, "split": split, "subset": subset}
        return {key: value for key, value in found.items() if value is not None} if name else {}
    if not isinstance(sets, list) or len(sets) != 1 or not isinstance(sets[0], dict):
        given.refuse("datasets", "names several data sets", "join them, or give train_data=FILE and ignore=[datasets]")
        return {"path": "SEVERAL"}
    return _one(given, dict(sets[0]), split)


def _one(given: Given, entry: dict[str, Any], split: str) -> dict[str, Any]:
    path, files = entry.pop("path", None), entry.pop("data_files", None)
    name, own, kind = entry.pop("name", None), entry.pop("split", None), str(entry.pop("type", "") or "")
    entry.pop("ds_type", None)
    if kind and not kind.startswith("chat_template"):
        message = f"has the type {kind}, which writes a template of its own"
        given.refuse("datasets", message, "set policy.tokenizer.chat_template after it, and ignore=[datasets]")
    left = sorted(key for key, value in entry.items() if value is not None)
    if left or isinstance(files, list | dict):
        given.refuse("datasets", f"has {', '.join(left or ['several data_files'])}, which has no counterpart", "see data.train")
    if files:
        return {"path": str(files)}
    found = {"dataset_name": path, "split": own or split, "subset": name}
    return {key: value for key, value in found.items() if value is not None}


def validation(given: Given, run: TheirRun, pairs: int, steps: int | None, named: Data) -> None:
    strategy = str(given.get("eval_strategy"))
    given.write("dpo.val_period", _period(given, run, pairs, steps, strategy), "eval_strategy", "eval_steps")
    given.write("dpo.val_at_start", bool(given.get("eval_on_start")), "eval_on_start")
    given.write("dpo.val_at_end", bool(named.validation and strategy == "no"), "eval_strategy")
    given.write("dpo.val_batches", -1, "eval_strategy", note="all of them")
    processes = run.processes or int(given.get("num_processes") or 1)
    size = int(given.get("per_device_eval_batch_size")) * processes
    given.write("dpo.val_global_batch_size", size, "per_device_eval_batch_size")


def _period(given: Given, run: TheirRun, pairs: int, steps: int | None, strategy: str) -> int:
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return epoch_steps(given, "eval_strategy", pairs, run)
    return every(given, "eval_steps" if given.says("eval_steps") else "logging_steps", steps, pairs, run)


def checkpoints(given: Given, run: TheirRun, pairs: int, steps: int | None) -> None:
    if given.get("output_dir"):
        given.write("checkpointing.checkpoint_dir", given.get("output_dir"), "output_dir")
    strategy = str(given.get("save_strategy"))
    if strategy not in ("no", "steps", "epoch"):
        given.refuse("save_strategy", f"is {strategy}, which is not built", "steps, epoch or no")
    period = {"no": lambda: UNLIMITED_STEPS, "epoch": lambda: epoch_steps(given, "save_strategy", pairs, run)}.get(
        strategy, lambda: every(given, "save_steps", steps, pairs, run)
    )()
    note = "the last step alone is saved" if strategy == "no" else ""
    given.write("checkpointing.save_period", period, "save_strategy", "save_steps", note=note)
    given.write("checkpointing.save_optimizer", not given.get("save_only_model"), "save_only_model")
    limit = given.get("save_total_limit")
    note = "all are kept" if limit is None else ""
    given.write("checkpointing.keep_top_k", None if limit is None else int(limit), "save_total_limit", note=note)
    _best(given)


def _best(given: Given) -> None:
    """The newest are kept, unless the best is to be loaded at the end: here it is kept, and the run says which it is."""
    if not given.get("load_best_model_at_end"):
        given.write("checkpointing.metric_name", None, "load_best_model_at_end", note="the newest are kept")
        return
    name = str(given.get("metric_for_best_model") or "loss")
    if name not in _METRICS:
        given.refuse("metric_for_best_model", f"is {name}, which has no counterpart", f"one of {', '.join(_METRICS)}")
    measured = _METRICS.get(name, "loss")
    ours = f"val:validation-default_{measured}"
    given.write("checkpointing.metric_name", ours, "metric_for_best_model", "load_best_model_at_end")
    higher = given.get("greater_is_better")
    given.write("checkpointing.higher_is_better", measured != "loss" if higher is None else bool(higher), "greater_is_better")


def trackers(given: Given) -> None:
    said = given.get("report_to")
    for name in [said] if isinstance(said, str) else said or []:
        if name in _TRACKERS:
            given.write(_TRACKERS[name], True, "report_to")
        elif name not in ("none", None):
            given.differ("report_to", f"{name} has no counterpart; metrics.jsonl has every metric")
    for ours, theirs in (("name", "run_name"), ("project", "wandb_project"), ("entity", "wandb_entity")):
        if given.says(theirs):
            given.write(f"logger.wandb.{ours}", str(given.get(theirs)), theirs)

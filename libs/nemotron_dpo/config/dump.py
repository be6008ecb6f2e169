"""A config as plain data and as YAML, in the spelling of a config file: the way back from what `load_run` builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from nemotron_dpo.config.data_spellings import HELD_OUT_KEYS
from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.schema import DatasetConfig, RunConfig


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, in its own order."""
    from yaml import safe_dump

    return safe_dump(dict(tree), sort_keys=False, width=120)


def dump_run(run: RunConfig) -> str:
    """`run` as YAML that `load_run` reads back to an equal RunConfig."""
    return to_yaml(run_tree(run))


def run_tree(run: RunConfig) -> dict[str, Any]:
    """`run` as plain data in the spelling of a config file."""
    tree = asdict(replace(run, dpo=replace(run.dpo, own_objective=None)))
    unset = [item.name for item in fields(DpoConfig) if "is_setting" in item.metadata and getattr(run.dpo, item.name) is None]
    for name in ("own_objective", *unset):
        del tree["dpo"][name]
    sets = tree["dpo"].pop("val_sets")
    if sets:
        given = {name: {key: value for key, value in own.items() if value is not None} for name, own in sets.items()}
        tree["dpo"]["val_sets"] = given
    if run.policy.tokenizer.chat_template is None:  # null would mean none at all
        tree["policy"]["tokenizer"]["chat_template"] = "default"
    data = tree["data"]
    data["train"] = _dataset_tree(data["train"])
    data["validation"] = {name: _dataset_tree(dataset) for name, dataset in data["validation"]}
    scheduler = tree["policy"]["scheduler"]
    if scheduler["name"] == "torch":
        chain = [{"name": f"torch.optim.lr_scheduler.{name}", "kwargs": kwargs} for name, kwargs in scheduler["schedulers"]]
        tree["policy"]["scheduler"] = [*chain, {"milestones": list(scheduler["milestones"])}]
    else:
        del scheduler["schedulers"], scheduler["milestones"]
        if scheduler["warmup_init"] is None:
            del scheduler["warmup_init"], scheduler["decay_steps"]
    optimizer = tree["policy"]["optimizer"]
    optimizer["betas"] = list(optimizer["betas"])
    return tree


def plain_tree(config: Any) -> dict[str, Any]:
    """The config of another step as plain data in the spelling of a config file."""
    tree = asdict(config)
    return {**tree, "data": _dataset_tree(tree["data"])} if "data" in tree else tree


def _dataset_tree(dataset: dict[str, Any]) -> Any:
    """One data set as a mapping; several as a list of these, each with what differs from the default alone."""
    if dataset["parts"]:
        plain = asdict(DatasetConfig())
        return [{name: value for name, value in part.items() if value != plain[name]} for part in dataset["parts"]]
    if dataset["split_from_train"] is not None:
        return {name: dataset[name] for name in HELD_OUT_KEYS if dataset[name] is not None}
    return {name: value for name, value in dataset.items() if name not in ("parts", "is_default", *HELD_OUT_KEYS)}

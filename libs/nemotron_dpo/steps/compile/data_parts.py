"""The data sets of a run, one by one: what preference-tokenize is told of each, how the parts of a mixture are called."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import DatasetConfig, RunConfig, redact
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.data_sources import absence, is_of_hub, last_parts, looks_like_file, resolve_data
from nemotron_dpo.preferences.hub_data import offline_variable


def data_options(dataset: DatasetConfig) -> list[str]:
    """The options of preference-tokenize that describe `dataset`, without its path.

    Raises UserError where the column of one response's reward is named, and not that of the other.
    """
    if (dataset.chosen_reward_key is None) != (dataset.rejected_reward_key is None):
        absent = "chosen_reward_key" if dataset.chosen_reward_key is None else "rejected_reward_key"
        shown = redact(str(dataset.path))
        raise UserError(f"the data {shown} have no {absent}, and a pair has two rewards", remedy="give both keys, or none")
    given = {
        "--split": dataset.split,
        "--subset": dataset.subset,
        "--format": dataset.row_format,
        "--prompt-key": dataset.prompt_key,
        "--chosen-key": dataset.chosen_key,
        "--rejected-key": dataset.rejected_key,
        "--chosen-reward-key": dataset.chosen_reward_key,
        "--rejected-reward-key": dataset.rejected_reward_key,
        "--source-name": dataset.source_name,
        "--limit": dataset.limit,
        "--on-error": dataset.on_error,
        "--drop": ",".join(dataset.drop) if dataset.drop else None,
    }
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]


def held_out_options(name: str, dataset: DatasetConfig, output: Path) -> list[str]:
    """The options of the training set's preference-tokenize that hold out the validation set `name`; none if it has rows."""
    if dataset.split_from_train is None:
        return []
    seed = [] if dataset.split_seed is None else ["--seed", str(dataset.split_seed)]
    return ["--split", f"{name}={dataset.split_from_train}", *seed, "--split-output", str(output)]


def data_parts(name: str, dataset: DatasetConfig) -> dict[str, DatasetConfig]:
    """The data sets that are tokenized and scored for the set `name`, by the names of their files."""
    if not dataset.is_mixture:
        return {name: dataset}
    return {f"{name}.{number}": part for number, part in enumerate(_told_apart(dataset.parts or (dataset,)), 1)}


def _told_apart(parts: tuple[DatasetConfig, ...]) -> list[DatasetConfig]:
    """`parts` with source names where preference-tokenize, which sees one part at a time, would call two of them alike."""
    names = [part.source_name or _last_part(str(part.path)) for part in parts]
    is_shared = {name: count > 1 for name, count in Counter(names).items()}
    return [
        replace(part, source_name=_long_name(part, parts)) if is_shared[name] and not part.source_name else part
        for name, part in zip(names, parts, strict=True)
    ]


def _last_part(path: str) -> str:
    return Path(path).name if looks_like_file(path) else path


def _long_name(part: DatasetConfig, parts: tuple[DatasetConfig, ...]) -> str:
    """As much of the path as tells the part from others; where the same data are named twice, also what is read of them."""
    path, others = str(part.path), [str(other.path) for other in parts]
    name = last_parts({other for other in others if looks_like_file(other)}).get(path, path)
    read = (part.subset, part.split) if others.count(path) > 1 else ()
    return ":".join([name, *filter(None, read)])


def without_unread_default(run: RunConfig) -> tuple[RunConfig, list[str]]:
    """`run` without a validation set that only data.default names and that cannot be read here, and a line that says so.

    With `data.train` set by hand, NVIDIA's own configs still validate on HelpSteer3. Where that can be had it is, as there.
    Where it cannot, because its loader is missing or may not ask the network, nobody has asked for it by name, and the run
    is to be had without it.
    """
    lines, kept = [], []
    for name, dataset in run.data.validation:
        why = _unread(dataset) if dataset.is_default else None
        if why is None:
            kept.append((name, dataset))
            continue
        shown = f"data.validation: {redact(str(dataset.path))}, which only data.default names, {why}"
        lines.append(f"{shown}: nothing is validated; data.validation.path=FILE names a set, data.validation=null none")
    return replace(run, data=replace(run.data, validation=tuple(kept))), lines


def _unread(dataset: DatasetConfig) -> str | None:
    """Why the data cannot be read on this machine; None where that is not known without asking the network."""
    path = str(dataset.path)
    if why := absence(path, dataset.split):
        return why
    if not (is_of_hub(path) and offline_variable()):
        return None
    try:
        resolve_data([path], dataset.split, dataset.subset)
    except UserError as error:
        return error.message
    return None

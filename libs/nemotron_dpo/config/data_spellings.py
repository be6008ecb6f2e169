"""The spellings of data sets: NeMo-RL's names of where rows lie and of their form; single sets, named ones and lists."""

from __future__ import annotations

import difflib
from typing import Any

from nemotron_dpo.config.tree import Tree, drop_empty, mapping, set_key
from nemotron_dpo.errors import UserError

_DATASET_KEYS = (
    "path", "prompt_key", "chosen_key", "rejected_key", "limit", "on_error", "split", "subset", "row_format",
    "chosen_reward_key", "rejected_reward_key", "source_name", "drop", "weight",
)  # fmt: skip
# What a validation set has that is held out of the training set.
HELD_OUT_KEYS = ("split_from_train", "split_seed")
PATH_ALIASES = ("data_path", "prompt_file")
# NeMo-RL's name for the form of the rows in the files of `data_path` -> our name; None if the rows show their form themselves
ROW_FORMS = {"PreferenceDataset": "ranked", "BinaryPreferenceDataset": None}


def canonical_data(data: Tree) -> None:
    """Rewrite the section `data`: of every data set its path, its form, and what data.default says of it."""
    shared = mapping(data, "default", "data")
    for alias in PATH_ALIASES:
        if shared.get(alias) is None:  # NVIDIA's own configs set it to null
            shared.pop(alias, None)
    given = {key: shared.pop(key) for key in (*_DATASET_KEYS, "dataset_name") if key in shared}
    given |= {"dataset_name": name} if (name := data.pop("dataset_name", None)) and not given.get("dataset_name") else {}
    drop_empty(data, "default")
    has_own = _names_rows(data.get("train"))
    if not isinstance(data.get("train"), list):
        _set(data, "train")
    data["train"] = _rows(data["train"], given, "data.train")
    validation = data.get("validation")
    if isinstance(validation, list):
        data["validation"] = {"default": validation}
    validation = _set(data, "validation")
    if any(key in validation for key in (*_DATASET_KEYS, *HELD_OUT_KEYS, *PATH_ALIASES, "dataset_name")):
        validation = {"default": validation}
    for name, path in mapping(data, "val_data_paths", "data").items():
        validation[name] = {"path": path}
    data.pop("val_data_paths", None)
    for name, dataset in validation.items():
        is_default = has_own and not _names_rows(dataset)
        validation[name] = rows = _rows(dataset, given, f"data.validation.{name}")
        if is_default and rows.get("path") is not None:
            rows["is_default"] = True
    data["validation"] = validation


def _set(data: Tree, name: str) -> Tree:
    """The mapping `data.NAME`, made empty where there is none; one that is a file's name is refused with what names files."""
    if isinstance(path := data.get(name), str):
        raise UserError(f"is {path!r} where a mapping is due", field=f"data.{name}", remedy=_naming(f"data.{name}", path))
    return mapping(data, name, "data")


def _naming(place: str, path: str) -> str:
    return f"name a file by {place}.prompt_file={path}"


def _names_rows(dataset: Any) -> bool:
    """Whether `dataset` itself says where its rows are."""
    names = (*PATH_ALIASES, "path", "dataset_name", "split_from_train")
    return isinstance(dataset, list) or (isinstance(dataset, dict) and any(dataset.get(name) is not None for name in names))


def _rows(dataset: Any, given: Tree, place: str) -> Tree:
    """One data set, or a list of some, in our spelling; NeMo-RL joins those of a list."""
    if isinstance(dataset, dict):
        _dataset(dataset, given, place)
        return dataset
    if not isinstance(dataset, list):
        section, _, name = place.rpartition(".")
        close = difflib.get_close_matches(name, (*_DATASET_KEYS, *HELD_OUT_KEYS, *PATH_ALIASES), n=1, cutoff=0.7)
        remedy = f"did you mean {section}.{close[0]}?" if close else None
        if remedy is None and isinstance(dataset, str):
            remedy = _naming(place, dataset)
        raise UserError(f"is {dataset!r} where a mapping with a path is due", field=place, remedy=remedy)
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
    if dataset.get("split_from_train") is not None:
        given = {}  # its rows are those of the training set, and so is all that is said of them
    for alias in PATH_ALIASES:
        if dataset.get(alias) is not None:
            set_key(dataset, "path", dataset[alias], place)
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
    if isinstance(name, str) and name in ROW_FORMS:
        if dataset.get("path") is not None and dataset.get("row_format") is None:
            dataset["row_format"] = ROW_FORMS[name]
    elif name is not None and dataset.get("path") is None:
        dataset["path"] = name

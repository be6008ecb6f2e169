"""Finds the files of rows in a folder that `datasets` saved, in one whose file names tell splits, or in one of plain files.

A folder with files of several splits is refused, so that training rows and test rows are not mixed. The names of splits are
those that `datasets` knows (its data_files.py). Files and folders whose names begin with . or _ are left out, as `datasets`
and Spark leave them out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError

_TEXTS, _COMPRESSED = (".jsonl", ".json", ".ndjson", ".csv", ".tsv"), ("", ".gz", ".zst", ".bz2", ".xz")
SUFFIXES = (*(text + packed for packed in _COMPRESSED for text in _TEXTS), ".parquet", ".arrow")
_STATE, _DICT = "state.json", "dataset_dict.json"
NOT_ROWS = {_STATE, _DICT, "dataset_info.json", "dataset_infos.json", "manifest.json", "config.json"}
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_SHARD = re.compile(r"(?:^|/)(?!data-|part-)(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9/=]+")


def folder_files(folder: Path) -> list[str]:
    """The files of rows in `folder`. Raises UserError where it has none, or several splits."""
    files = _saved_files(folder) if is_saved(folder) else sorted(_walk(folder))
    if not files:
        raise UserError("is a folder without JSONL, JSON, CSV, Parquet or Arrow files", source=folder)
    _refuse_several_splits(folder, files)
    return files


def split_files(folder: Path, split: str) -> list[str]:
    """The files of one split in `folder`, which `save_to_disk` wrote or whose file names tell the split.

    If no file name tells a split, all files are the split train, as for `datasets`. Raises UserError where `split` has no
    files.
    """
    if is_saved(folder):
        return _saved_files(_saved_split(folder, split))
    splits: dict[str | None, list[str]] = {}
    for file in sorted(_walk(folder)):
        splits.setdefault(split_name(Path(file).relative_to(folder).as_posix()), []).append(file)
    wanted = _SPLIT_WORDS.get(split, split)
    found = splits.get(split) or splits.get(wanted) or (splits[None] if set(splits) == {None} and wanted == "train" else [])
    if not found:
        there = ", ".join(name or "files that name no split" for name in splits) or "no files of rows"
        raise UserError(f"has no split {split}, but {there}", source=folder)
    return found


def subset_folder(folder: Path, subset: str) -> Path:
    """The folder of `subset` in `folder`. Raises UserError where there is none."""
    below = folder / subset
    if Path(subset).name != subset or not below.is_dir():
        raise UserError(f"has no subset {subset}", source=folder, remedy="leave the subset out, or name a folder of rows in it")
    return below


def _saved_split(folder: Path, split: str) -> Path:
    """The folder in which `save_to_disk` put `split`. Raises UserError where there is no such split.

    A set that was saved alone is the split that its state.json names, or train where that names none.
    """
    if (folder / _DICT).is_file():
        splits = _names(_read_json(folder / _DICT).get("splits"), folder / _DICT)
        if split not in splits:
            raise UserError(f"has no split {split}, but {', '.join(splits)}", source=folder)
        return folder / split
    named = str(_read_json(folder / _STATE).get("_split") or "train").partition("[")[0]
    if split != named:
        remedy = f"ask for {named}, or for no split"
        raise UserError(f"was saved as one set, the split {named}, not {split}", source=folder, remedy=remedy)
    return folder


def is_saved(folder: Path) -> bool:
    """True where `save_to_disk` of `datasets` wrote `folder`, as one set or as a dictionary of splits."""
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / "dataset_info.json").is_file())


def split_name(relative: str) -> str | None:
    """The split that a file's path, `relative` to the folder, names; None where no word of the path names one."""
    if shard := _SHARD.search(relative):
        return shard[1]
    words = (_SPLIT_WORDS.get(word) for word in _BETWEEN_WORDS.split(relative.lower()))
    return next((split for split in words if split), None)


def _walk(folder: Path) -> list[str]:
    files: list[str] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        if "_delta_log" in folders:
            raise UserError("is a Delta table, whose files may hold rows that it no longer has", source=where)
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if is_saved(Path(where)):
            files += _saved_files(Path(where))
            folders.clear()
            continue
        files += [str(Path(where, name)) for name in names if _is_rows(name) and Path(where, name).is_file()]
    return files


def _raise(error: OSError) -> None:
    raise error


def _is_rows(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name not in NOT_ROWS and not name.startswith((".", "_"))


def _saved_files(folder: Path) -> list[str]:
    """The files of a data set that `save_to_disk` wrote, in the order in which state.json lists them.

    Other files beside them are leftovers of a cache. Raises UserError where the set has several splits, comes from an old
    version of `datasets`, or lacks a file.
    """
    if (folder / _DICT).is_file():
        splits = _names(_read_json(folder / _DICT).get("splits"), folder / _DICT)
        if len(splits) > 1:
            raise _several_splits(folder, splits, str(folder / ("train" if "train" in splits else splits[0])))
        return _saved_files(folder / splits[0])
    state = _read_json(folder / _STATE)
    listed = state.get("_data_files")
    entries = [entry if isinstance(entry, dict) else {} for entry in listed] if isinstance(listed, list) else []
    if state.get("_indices_data_files") or any("skip" in entry or "take" in entry for entry in entries):
        remedy = "load and save it again with a new version"
        raise UserError("was saved by an old version of datasets, as rows to pick", source=folder, remedy=remedy)
    files = [folder / name for name in _names([entry.get("filename") for entry in entries], folder / _STATE)]
    for missing in (file for file in files if not file.is_file()):
        raise UserError("is not there, though state.json beside it names it", source=missing)
    return [str(file) for file in files]


def _names(value: Any, source: Path) -> list[str]:
    """`value` as a list of names in the folder of the file `source`. Raises UserError where it is not such a list."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    if not names or len(names) != len(value) or any(Path(name).name != name for name in names):
        raise UserError("does not name what lies beside it", source=source)
    return names


def _read_json(path: Path) -> dict[str, Any]:
    import orjson

    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"is broken JSON: {error.msg}", source=path) from None
    return value if isinstance(value, dict) else {}


def _refuse_several_splits(folder: Path, files: list[str]) -> None:
    """Raise UserError where the names of `files` tell several splits.

    Files whose names tell no split may stand beside files of train, but not beside files of another split.
    """
    splits: dict[str | None, list[str]] = {}
    for file in files:
        splits.setdefault(split_name(Path(file).relative_to(folder).as_posix()), []).append(file)
    named = [split for split in splits if split is not None]
    if len(named) > 1 or (None in splits and any(split != "train" for split in named)):
        first = next((split for split in named if split.startswith("train")), named[0])
        whats = [f"{split or 'no split by name'} ({len(found)})" for split, found in splits.items()]
        raise _several_splits(folder, whats, _pattern(splits[first], files))


def _pattern(wanted: list[str], files: list[str]) -> str:
    """A glob that matches the files `wanted` and no others of `files`, or the first of `wanted` where there is no such glob."""
    start = os.path.commonprefix(wanted)  # noqa: RUF071 - names are compared letter by letter
    beside = {os.path.dirname(file) for file in wanted} == {os.path.dirname(start)}
    alone = beside and len(wanted) > 1 and [file for file in files if file.startswith(start)] == wanted
    return f"{start}*" if alone else wanted[0]


def _several_splits(folder: Path, splits: list[str], example: str) -> UserError:
    message = f"holds files of several splits, which are not mixed: {', '.join(splits)}"
    return UserError(message, source=folder, remedy=f"name files, a glob or a folder, as in '{example}'")

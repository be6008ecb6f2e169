"""Finds the files that a name of data stands for.

A name is a file, a glob, a folder, a manifest of rl_prep, a built-in name of NeMo-RL or an id of the Hugging Face hub. Each
becomes files and the part of their rows that is asked for, so that the code that reads or digests data knows only files.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.data_folders import SUFFIXES, split_files, subset_folder
from nemotron_dpo.preferences.hub_data import INSTALL, describes_itself, hub_files
from nemotron_dpo.preferences.inputs import expand
from nemotron_dpo.preferences.rl_prep import find_manifest, manifest_files, manifest_splits
from nemotron_dpo.preferences.splits import SplitPart, parse_split

_WHOLE = SplitPart("")


@dataclass(frozen=True)
class BuiltIn:
    """A data set that NeMo-RL knows by a name: its id and subset on the hub, and the format of its rows."""

    hub_id: str
    subset: str | None
    row_format: str


BUILT_IN = {
    "HelpSteer3": BuiltIn("nvidia/HelpSteer3", "preference", "helpsteer3"),
    "Tulu3Preference": BuiltIn("allenai/llama-3.1-tulu-3-8b-preference-mixture", None, "conversation"),
}


@dataclass(frozen=True)
class RowSource:
    """The rows of `files`, which are read in order, cut to the part of them that `part` describes; `name` stood for them."""

    files: tuple[str, ...]
    part: SplitPart = _WHOLE
    name: str = ""


def resolve_data(inputs: Sequence[str], split: str | None = None, subset: str | None = None) -> list[RowSource]:
    """The sources of rows that `inputs` name, in order.

    Raises UserError where an input names nothing, has no such split or subset, or has several splits and `split` is None.
    """
    parts = parse_split(split) if split else [_WHOLE]
    sources = []
    for name in inputs:
        if len({part.name for part in parts}) > 1 and _is_file(name):
            raise UserError("is a file, which has no splits", source=name, remedy="name a part of it, as in train[:10]")
        sources += [RowSource(tuple(_files(name, part.name, subset)), part, name) for part in parts]
    return sources


def all_files(sources: Iterable[RowSource]) -> list[str]:
    """The files of all `sources`, each once."""
    return list(dict.fromkeys(file for source in sources for file in source.files))


def source_names(sources: Iterable[RowSource]) -> dict[str, str]:
    """For each file of `sources`, the name under which its pairs are counted.

    It is the name of the data set or folder that the file is of, else of the file itself: the last part of the path, with as
    many parts before it as tell all of them apart.
    """
    given = {file: _own_name(source.name, file) for source in sources for file in source.files}
    short = last_parts({name for name in given.values() if Path(name).exists()})
    return {file: short.get(name, name) for file, name in given.items()}


def file_names(names: Mapping[str, str]) -> dict[str, str]:
    """The own name of each file that shares the name it has in `names`: the end of its path that tells all of them apart."""
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return last_parts({file for file, name in names.items() if name in shared})


def _own_name(name: str, file: str) -> str:
    if name == "-":
        return "stdin"
    return file if _is_file(name) or (glob.has_magic(name) and not Path(name).exists()) else name


def last_parts(paths: Collection[str]) -> dict[str, str]:
    """The end of each path, of as many parts as tell all of them apart."""
    parts = {path: Path(os.path.abspath(path)).parts for path in paths}
    names: dict[str, str] = {}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "/".join(all_parts[-count:]) for path, all_parts in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names


def format_of(inputs: Sequence[str]) -> str | None:
    """The row format of the built-in data set that `inputs` name; None where they name something else."""
    found = {BUILT_IN[name].row_format if _is_built_in(name) else None for name in inputs}
    return found.pop() if len(found) == 1 else None


def absence(name: str, split: str | None) -> str | None:
    """The reason why `name` cannot be read; None where no reason is known.

    The check neither reads the data nor asks the network; of a file without a suffix of data it reads the beginning.
    """
    if _is_template(Path(name)):
        return "is a template for prompts, as NeMo-RL's prompt_file may be, and no rows: such templates are not built"
    if name == "-" or Path(name).exists() or (glob.has_magic(name) and glob.glob(name, recursive=True)):
        return None
    if not _is_built_in(name) and not (split and looks_like_id(name)):
        may_be_id = "/" in name and looks_like_id(name)
        return f"no such file{': a data set of the Hugging Face hub needs a split' if may_be_id else ''}"
    if importlib.util.find_spec("datasets") is None:
        return f"is read by the package datasets, which is not installed: {INSTALL}"
    return None


def is_of_hub(name: str) -> bool:
    """True where reading `name` may ask the network."""
    return name != "-" and not Path(name).exists() and not glob.has_magic(name)


def looks_like_file(name: str) -> bool:
    """True where `name` is a path, whether or not anything is there."""
    return Path(name).exists() or not (looks_like_id(name) or _is_built_in(name))


def looks_like_id(name: str) -> bool:
    """True where `name`, which is not a file, can be an id of the hub."""
    is_path = name.startswith((".", "/", "~")) or name.lower().endswith(SUFFIXES) or glob.has_magic(name)
    return not is_path and name.count("/") <= 1


def _is_template(path: Path) -> bool:
    """Whether the file has the `{}` of a text to format, and is no JSON."""
    if not path.is_file() or path.name.lower().endswith(SUFFIXES):
        return False
    with path.open("rb") as file:
        start = file.read(1 << 16).lstrip()
    return b"{}" in start and (start[:1] not in (b"{", b"[") or start.startswith(b"{}"))


def _is_built_in(name: str) -> bool:
    return name in BUILT_IN and not Path(name).exists()


def _is_file(name: str) -> bool:
    path = Path(name)
    return name == "-" or (path.exists() and not path.is_dir() and find_manifest(path) is None)


def _files(name: str, split: str, subset: str | None) -> list[str]:
    path = Path(name)
    if _is_file(name) or (glob.has_magic(name) and not path.exists()):
        if subset:
            raise UserError("is no data set with subsets", source=name, remedy="leave the subset out")
        return expand([name])
    if not path.exists():
        return _hub_files(name, split, subset)
    if manifest := find_manifest(path):
        return _manifest_files(manifest, split, subset)
    if split and describes_itself(path):
        return hub_files(name, subset, split)
    folder = subset_folder(path, subset) if subset else path
    return split_files(folder, split) if split else expand([str(folder)])


def _hub_files(name: str, split: str, subset: str | None) -> list[str]:
    if built_in := BUILT_IN.get(name):
        return hub_files(built_in.hub_id, subset or built_in.subset, split or "train")
    if not split or not looks_like_id(name):
        return expand([name])  # raises the UserError that there is no such file
    hub_id, _, config = name.partition(":")
    return hub_files(hub_id, subset or config or None, split)


def _manifest_files(manifest: Path, split: str, subset: str | None) -> list[str]:
    splits = manifest_splits(manifest)
    if subset:
        raise UserError("is a manifest, which has no subsets", source=manifest, remedy="leave the subset out")
    if not split and len(splits) != 1:
        message = f"names several splits, which are not mixed: {', '.join(splits)}"
        raise UserError(message, source=manifest, remedy="ask for one: --split train, or data.train.split=train")
    return manifest_files(manifest, split or splits[0])

"""What stages have made before, by key: `.nemotron/cache`. It may be deleted at any time; what is missing is made again.

A file is kept here as a hard link, so it survives the job that made it; of a folder, which may hold gigabytes of weights,
only the place is noted, so deleting the job frees the disk. What was changed after it was made does not count.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

CACHE = Path(".nemotron") / "cache"
JOBS = Path(".nemotron") / "jobs"
DIGESTS = CACHE / "digests.json"
# Files that are only ever replaced are linked; others are copied, so that a run that goes on leaves the job before alone.
_LINKED = (".distcp", ".safetensors", ".arrow")


@dataclass(frozen=True)
class Entry:
    """Where the outputs of one stage lie."""

    key: str
    places: tuple[Path, ...]


def find(key: str, outputs: Sequence[Path]) -> Entry | None:
    """The entry of `key`, unless something of it is gone or not as it was left, or a folder is in the way of one of its."""
    try:
        noted = orjson.loads((CACHE / f"{key}.json").read_bytes())
        entry = Entry(key, tuple(Path(output["place"]) for output in noted["outputs"]))
        states = [output["state"] for output in noted["outputs"]]
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if not all(path.exists() for path in entry.places) or [_state(path) for path in entry.places] != states:
        return None
    pairs = zip(entry.places, outputs, strict=True)
    return None if any(place != target and target.is_dir() for place, target in pairs) else entry


def record(key: str, stage: str, outputs: Sequence[Path]) -> None:
    """Note that `outputs`, in this order, are what the stage of `key` makes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    places = [path if path.is_dir() else _kept(key, n, path) for n, path in enumerate(outputs)]
    noted = {"stage": stage, "outputs": [{"place": str(path), "state": _state(path)} for path in places]}
    _note(CACHE / f"{key}.json", orjson.dumps(noted, option=orjson.OPT_INDENT_2))
    (CACHE / f"{key}.started").unlink(missing_ok=True)


def bring(entry: Entry, stage: str, outputs: Sequence[Path]) -> None:
    """Put what is in `entry` where the stage would have put it; from now on a folder's place is this newest one."""
    for place, target in zip(entry.places, outputs, strict=True):
        if place == target:
            continue
        if place.is_dir():
            copy_folder(place, target)
        else:
            _link(place, target)
    if any(place.is_dir() for place in entry.places):
        record(entry.key, stage, outputs)


def copy_folder(place: Path, target: Path) -> None:
    """A copy of a folder that shares the files which are never written in place."""
    shutil.copytree(place, target, copy_function=_copy, symlinks=True)


def note_start(key: str, folder: Path) -> None:
    """Note that the stage of `key` works in `folder`, in case it does not come to its end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    _note(CACHE / f"{key}.started", os.fsencode(folder))


def interrupted(key: str) -> Path | None:
    """The folder where the stage of `key` worked last, if it is still there; only one of a job is believed."""
    try:
        folder = Path(os.fsdecode((CACHE / f"{key}.started").read_bytes()))
        return folder if folder.is_dir() and JOBS.resolve() in folder.resolve().parent.parents else None
    except (FileNotFoundError, ValueError):  # ValueError: a damaged note need not be a path
        return None


def by_hand(entry: Entry, outputs: Sequence[Path]) -> list[tuple[str, ...]]:
    """Commands that do what `bring` does."""
    pairs = zip(entry.places, outputs, strict=True)
    return [("cp", "-r" if place.is_dir() else "-lf", str(place), str(target)) for place, target in pairs if place != target]


def _note(file: Path, content: bytes) -> None:
    """Write `file` whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _kept(key: str, number: int, path: Path) -> Path:
    place = CACHE / f"{key}{'' if number == 0 else f'-{number}'}{path.suffix}"
    path.chmod(0o444)  # the link and the original are one file: writing to either in place would change both
    _link(path, place)
    return place


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copy2(source, temporary)
    os.replace(temporary, target)


def _copy(source: str, target: str) -> None:
    if source.endswith(_LINKED):
        _link(Path(source), Path(target))
    else:
        shutil.copy2(source, target)


def _state(path: Path) -> list[list[str | int]]:
    """Name, size and time of every file, as JSON has them."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    states = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]

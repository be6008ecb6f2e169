"""What stages have made before, by key: `.nemotron/cache`. It may be deleted at any time; what is missing is made again.

A file is kept as a copy, so it outlives the job that made it, and whoever edits a job's file in place changes that file
alone. Where the file system can share blocks (Btrfs, XFS) the copy costs neither time nor disk; elsewhere a gigabyte is
written once more. Of a folder, which may hold gigabytes of weights, only the place is noted, so deleting the job frees the
disk. Jobs that took over one checkpoint may share its weights by links (`_LINKED`). What was changed after it was made does
not count.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemotron_dpo import file_digests, locks
from nemotron_dpo.published import replacing

CACHE = Path(".nemotron") / "cache"
JOBS = Path(".nemotron") / "jobs"
DIGESTS = CACHE / "digests.json"
# Where blocks cannot be shared, weights of a checkpoint are linked, not copied: our programs replace such files and never
# write into one, and the digests beside them tell of whoever does. All else is copied, exported models too.
_LINKED = ".distcp"
_FICLONE = 0x40049409  # of linux/fs.h: give a file the blocks of another one


@dataclass(frozen=True)
class CacheEntry:
    """Where the outputs of one stage lie."""

    key: str
    places: tuple[Path, ...]


def find(key: str, outputs: Sequence[Path]) -> CacheEntry | None:
    """The entry of `key`, unless something of it is gone or not as it was left, or a folder is in the way of one of its."""
    try:
        noted = orjson.loads((CACHE / f"{key}.json").read_bytes())
        entry = CacheEntry(key, tuple(Path(output["place"]) for output in noted["outputs"]))
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
    note(CACHE / f"{key}.json", orjson.dumps(noted, option=orjson.OPT_INDENT_2))
    (CACHE / f"{key}.started").unlink(missing_ok=True)


def bring(entry: CacheEntry, stage: str, outputs: Sequence[Path]) -> None:
    """Put what is in `entry` where the stage would have put it; from now on a folder's place is this newest one."""
    for place, target in zip(entry.places, outputs, strict=True):
        if place == target:
            continue
        if place.is_dir():
            copy_folder(place, target)
        else:
            _copy_file(place, target)
    if any(place.is_dir() for place in entry.places):
        record(entry.key, stage, outputs)


def copy_folder(place: Path, target: Path) -> None:
    """A copy of a folder that shares the weights of its checkpoints, where integrity.json has their digests."""
    checked = {path.parent for path in place.rglob(file_digests.NAME)}

    def copy(source: str, new: str) -> None:
        if source.endswith(_LINKED) and not checked.isdisjoint(Path(source).parents):
            _share(Path(source), Path(new))
        else:
            _copy_own(Path(source), Path(new))

    shutil.copytree(place, target, copy_function=copy, symlinks=True)


def note(file: Path, content: bytes) -> None:
    """Write `file` of the cache whole or not at all."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def note_start(key: str, folder: Path) -> None:
    """Note that the stage of `key` works in `folder`, in case it does not come to its end."""
    note(CACHE / f"{key}.started", os.fsencode(folder))


def interrupted(key: str) -> Path | None:
    """The folder where the stage of `key` worked last, if it is still there; only one of a job is believed.

    Where another process, here or on another host, still works in it, nothing was interrupted.
    """
    try:
        folder = Path(os.fsdecode((CACHE / f"{key}.started").read_bytes()))
        return folder if is_of_job(folder) and not locks.is_held(folder / locks.OF_FOLDER) else None
    except (FileNotFoundError, ValueError):  # ValueError: a damaged note need not be a path
        return None


def is_of_job(folder: Path) -> bool:
    """Whether `folder` is there, and lies in that of a job."""
    return folder.is_dir() and JOBS.resolve() in folder.resolve().parent.parents


def by_hand(entry: CacheEntry, outputs: Sequence[Path]) -> list[tuple[str, ...]]:
    """Commands that do what `bring` does."""
    pairs = zip(entry.places, outputs, strict=True)
    return [
        ("cp", *(["-r"] if place.is_dir() else _CP_FILE), str(place), str(target)) for place, target in pairs if place != target
    ]


_CP_FILE = ("-f", "--reflink=auto", "--no-preserve=mode")


def _kept(key: str, number: int, path: Path) -> Path:
    place = CACHE / f"{key}{'' if number == 0 else f'-{number}'}{path.suffix}"
    _copy_file(path, place, mode=0o444)
    return place


def _copy_file(source: Path, target: Path, mode: int | None = None) -> None:
    """Put a copy of `source` at `target`, whole or not at all; None is the mode of any new file."""
    with replacing(target) as temporary:
        if not _share_blocks(source, temporary):
            shutil.copyfile(source, temporary)
        if mode is not None:
            temporary.chmod(mode)


def _share_blocks(source: Path, target: Path) -> bool:
    """Whether `target` is now a file of its own that shares the blocks of `source` until either is written to."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
    return True


def _copy_own(source: Path, target: Path) -> None:
    """As shutil.copy2, with shared blocks where that can be."""
    _copy_file(source, target)
    shutil.copystat(source, target)


def _share(source: Path, target: Path) -> None:
    """As _copy_own, but linked where blocks cannot be shared."""
    with replacing(target) as temporary:
        if _share_blocks(source, temporary):
            shutil.copystat(source, temporary)
            return
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)


def _state(path: Path) -> list[list[str | int]]:
    """Name, size and time of every file, as JSON has them."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    states = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]

"""Files and folders that appear whole or not at all: each is made in a place of its own beside its target, and renamed.

The place is a folder with a name that no other process can have, and with a lock that is held as long as its process lives. So
what a killed process left is told from what one that lives is making, in containers where all have one process id too, and
removed by the next that writes beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from nemotron_dpo import locks, machine_errors, processes
from nemotron_dpo.errors import UserError

_LOCK = ".lock"
_PLACE = re.compile(r"\..*\.([0-9a-f]{8})-[0-9a-f]{16}\.tmp", re.DOTALL)
_NAME_BYTES = 100  # of the target's name in that of its place, which file systems limit to 255
_FORGOTTEN_SECONDS = 7 * 86400
_swept: set[str] = set()


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new path beside `target`. What the block makes there is on the disk and has the name `target` once it ends well.

    Raises OSError, which names `target`, where that cannot be. An error of the block that names no file counts as one of it.
    """
    with machine_errors.named(target), _made_beside(target) as made:
        yield made


@contextlib.contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """As `replacing`, for blocks that have other files to do with, too."""
    try:
        with _place_beside(target) as place:
            made = place / target.name
            yield made
            if made.is_dir():
                sync_tree(made)
            else:
                _sync(made)
            os.replace(made, target)
            sync_folder(target.parent)
    except OSError as error:
        if any(_PLACE.fullmatch(part) for named in machine_errors.places(error) for part in Path(named).parts):
            raise machine_errors.at(error, target) from error
        raise


@contextlib.contextmanager
def published_file(target: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `target` when the block ends well and disappears when it does not.

    A target that exists and is no regular file (/dev/null, a named pipe, /dev/fd/N) is written in place.
    Raises OSError where the folder is missing or cannot be written.
    """
    path = Path(target)
    if path.is_dir():
        raise IsADirectoryError(21, "is a directory", str(path))
    if path.exists() and not path.is_file():
        with machine_errors.named_file(path.open("wb"), path) as file:
            yield file
        return
    with _made_beside(path) as temporary, machine_errors.named_file(temporary.open("wb"), path) as file:
        yield file


@contextlib.contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the name `target` when the block ends well and disappears when it does not.

    Raises UserError where `target` is there already, or another process is making it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)

    def refusal(holder: str) -> UserError:
        return UserError(f"another program is writing it ({holder})", source=target, remedy="wait for it, or name another")

    with locks.held(target.with_name(f".{_short(target.name)}.lock"), target, refusal, lambda: None):
        refuse_existing(target)
        try:
            with replacing(target) as folder:
                folder.mkdir()
                yield folder
        except UserError as error:
            error.source = error.source or str(target)
            raise


def refuse_existing(folder: Path) -> None:
    """Raise UserError (usage) where the output `folder` exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("exists already", source=folder, remedy="remove it or name another", usage=True)


def sync_tree(folder: Path) -> None:
    """fsync everything below a directory, so that a rename of it publishes only files that are whole on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """fsync a directory, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with machine_errors.named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: Path) -> None:
    if not file.is_symlink():
        sync_folder(file)  # a descriptor of a file is synced by the same call


@contextlib.contextmanager
def _place_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which goes with the block; those of dead processes go first."""
    place, file = _locked_place(target)
    try:
        if str(target.parent) not in _swept:
            _swept.add(str(target.parent))
            _sweep(target.parent, now=place.stat().st_mtime)
        yield place
    finally:
        _remove(place, file)


def _locked_place(target: Path) -> tuple[Path, int]:
    """A new folder and a descriptor of the lock in it. Who sweeps may have taken either before it was locked."""
    while True:
        place = target.parent / f".{_short(target.name)}.{mount_of(target.parent)}-{os.urandom(8).hex()}.tmp"
        place.mkdir()
        try:
            file = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            continue
        except BaseException:
            _remove(place)
            raise
        locks.lock(file, fcntl.LOCK_EX)
        if locks.is_named(file, place / _LOCK):
            return place, file
        os.close(file)


def places(folder: Path) -> list[Path]:
    """The places that lie in `folder`, of processes that live and of dead ones."""
    return [
        Path(entry.path) for entry in os.scandir(folder) if _PLACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    ]


def sweep(folder: Path) -> None:
    """Remove what dead processes left in `folder`. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        _sweep(folder, clock_of(folder))


def clock_of(folder: Path) -> float:
    """The time by the clock of the file system of `folder`, which is that of its server for all hosts."""
    with _place_beside(folder / "clock") as place:
        return place.stat().st_mtime


def _sweep(folder: Path, now: float) -> None:
    """`sweep`, where `now` is what `clock_of` says."""
    with contextlib.suppress(OSError):
        for place in places(folder):
            found = _PLACE.fullmatch(place.name)
            _remove_dead(place, now, is_ours=found is not None and found[1] == mount_of(folder))


def _remove_dead(place: Path, now: float, *, is_ours: bool) -> None:
    """Remove `place` where no process holds its lock.

    Locks of one mount are sure. Another's may not be seen on a shared file system: there it must have lain for days, too.
    """
    try:
        file = os.open(place / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        place.rmdir()  # empty: just made, and made again elsewhere, or half removed
        return
    try:
        is_locked = locks.lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_dead = is_locked and (is_ours or now - _last_change(place) > _FORGOTTEN_SECONDS)
    except OSError:
        os.close(file)
        return
    if is_dead:
        _remove(place, file)
    else:
        os.close(file)


def _last_change(place: Path) -> float:
    return max(path.stat().st_mtime for path in (place, *place.rglob("*")))


def _remove(place: Path, lock: int | None = None) -> None:
    """Remove `place`, its lock last: as long as something is left, who comes next can tell whether its process lives.

    `lock` is closed. A file server keeps an open file under another name (.nfs...), so that the folder is empty only then.
    """
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        (place / _LOCK).unlink(missing_ok=True)
    if lock is not None:
        os.close(lock)
    with contextlib.suppress(OSError):
        place.rmdir()


def mount_of(folder: Path) -> str:
    """Eight digits that name the file system of `folder` in the running kernel, which knows all who hold locks there.

    Containers share a kernel, but may have mounted a file server's folder each for itself, and see no locks of each other's.
    """
    name = processes.kernel().encode()
    with contextlib.suppress(OSError):  # where there is no such folder nothing can be made in it, which is said then
        name += b" %d" % folder.stat().st_dev
    return sha256(name).hexdigest()[:8]


def _short(name: str) -> str:
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")

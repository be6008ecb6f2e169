"""Let only one process at a time do something: a lock file that is held as long as its process lives, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from nemotron_dpo import machine_errors
from nemotron_dpo.errors import UserError

OF_FOLDER = ".lock"  # of a folder that one process at a time works in
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def held(path: Path, of: Path, refusal: Callable[[str], UserError], without: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file `path` of the file or folder `of` during the block, and remove it afterwards.

    Raises OSError, which names `of`, where there can be no such file, and what `refusal` makes of the holder's name where
    another process holds it. On a file system without locks `without` is called, and the block runs without one.
    """
    try:
        file = _locked(path, refusal, without)
    except OSError as error:
        raise machine_errors.at(error, of) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before unlocking: who locks this file next sees that it lost its name
        os.close(file)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path`, as far as this host can see."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:  # none, or none of ours
        return False
    try:
        lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(file)
    return False


def is_named(file: int, path: Path) -> bool:
    """Whether `path` is still the name of the open `file`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def lock(file: int, how: int) -> bool:
    """flock `file`: False on a file system without locks. Raises OSError where another holds it and `how` does not wait."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _locked(path: Path, refusal: Callable[[str], UserError], without: Callable[[], object]) -> int:
    """A descriptor of the lock file. It is locked, and the file still has its name; without locks it is only open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                without()
                return file
        except OSError as error:
            if error.errno not in _HELD:
                os.close(file)
                raise
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise refusal(holder or "it has just begun") from None
        if is_named(file, path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)

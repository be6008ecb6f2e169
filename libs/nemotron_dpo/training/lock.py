"""Let only one run at a time work in a folder. The lock is released when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from nemotron_dpo.errors import UserError

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_run(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of `folder` during the block. Create the folder and its parents if they are missing.

    Of the folders that were created, those that the block leaves empty are removed. Raises UserError if another process holds
    the lock. On a file system without locks, `say` gets a warning and the block runs without one.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder, say)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)  # before unlocking: who locks this file next sees that it lost its name
        os.close(file)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _locked(folder: Path, say: Callable[[str], object]) -> int:
    """A descriptor of the lock file. It is locked, and the file still has its name; without locks it is only open."""
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            if error.errno in _UNSUPPORTED:
                say(f"warning: {folder}: its file system has no locks: no other run may work in it")
                return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            remedy = "wait for it, or name another folder"
            raise UserError(
                f"another dpo-train works in it ({holder or 'it has just begun'})", source=folder, remedy=remedy
            ) from None
        if _is_named(file, path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return file
        os.close(file)


def _is_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False

"""Files that appear whole or not at all: each is written under a temporary name beside its target, fsynced and renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
        with path.open("wb") as file:
            yield file
        return
    with _named_by(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        file = temporary.open("wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """fsync everything below a directory, so that a rename of it publishes only files that are whole on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """fsync a directory, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named_by(path: Path) -> Iterator[None]:
    """Let an OSError name the file the user asked for instead of the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise

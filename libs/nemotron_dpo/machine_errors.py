"""What the machine says where it cannot do what a program asks: a full disk, a file server that is gone, no memory left.

One line for each, with the place that the user named and, where there is something to try, what. No program shows a traceback
for any of them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemotron_dpo.errors import UserError

# what to try, beside what the system says itself
_REMEDIES = {
    errno.EIO: "does the disk, or its server, work?",
    errno.ESTALE: "the file server has changed it: run again, or mount anew",
    errno.EMFILE: "raise the limit: ulimit -n",
    errno.ENFILE: "close other programs, or raise fs.file-max",
    errno.ENOMEM: "free some memory, or take a larger machine",
    errno.EAGAIN: "too many processes, perhaps: ulimit -u",
    errno.ENOLCK: "mount its file system with locks, or take another",
    errno.ETIMEDOUT: "does the file server, or the network, answer?",
    errno.EHOSTDOWN: "does the file server answer?",
    errno.ENXIO: "is the device there?",
    errno.ENODEV: "is the device there?",
}  # fmt: skip

NOT_THERE = (FileNotFoundError, NotADirectoryError)  # nothing stands under the name; all else may hide what does
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # never of what is read
_WORDS = {os.strerror(number): number for number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC)}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # so its libraries end what they say of an error of the machine


def as_user_error(error: OSError | MemoryError) -> UserError:
    """One line of `error`, in the system's own words where it has a number."""
    if isinstance(error, MemoryError):
        return UserError("out of memory", remedy=_REMEDIES[errno.ENOMEM])
    if error.errno is None:
        return UserError(" ".join(str(error).split()) or type(error).__name__)
    place = error.filename or _file_read(error)
    return UserError(os.strerror(error.errno).lower(), source=place, remedy=_REMEDIES.get(error.errno))


_OPEN = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO, io.TextIOWrapper)


def _file_read(error: OSError) -> str | None:
    """The file that was read as `error` came, for the system names no open file: that of the innermost function with any.

    None where this has several open, or writes.
    """
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if held := {id(value): value for value in frame.f_locals.values() if isinstance(value, _OPEN)}:
            only, *others = held.values()
            is_read = getattr(only, "mode", "") in ("r", "rb") and not isinstance(only.name, int)  # a descriptor's number
            found = str(only.name) if is_read and not others else None
    return found if error.errno not in OF_WRITING else None


def told_in_words(error: RuntimeError) -> UserError | None:
    """The error of the machine whose words `error`, of a library in C++ such as gloo, has; None where it has none."""
    return next((as_user_error(OSError(number, "")) for words, number in _WORDS.items() if words in str(error)), None)


def behind(error: BaseException) -> UserError | None:
    """The error of the machine that `error`, of a library, comes from or tells of; None where it comes from none."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        if isinstance(cause, OSError | MemoryError):
            return as_user_error(cause)
        if told := _OF_RUST.search(str(cause)):
            return as_user_error(OSError(int(told[1]), ""))
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """In the block, and in files it opens, `path` is the place of an error of the machine that has none of its own."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise at(error, _file_read(error) or path) from error
        raise


def at(error: OSError, path: str | Path) -> OSError:
    """`error` with `path` as its only place."""
    if error.errno is None:
        return OSError(f"{path}: {error}")
    return OSError(error.errno, os.strerror(error.errno), str(path))


def places(error: OSError) -> list[str]:
    """The files that `error` may be of: of a copy the source is named first, also where it is the copy that finds no room."""
    of_copy = error.filename2 if error.errno in OF_WRITING else None
    return [str(name) for name in (error.filename or _file_read(error), of_copy) if name]


def named_file(file: BinaryIO, path: str | Path) -> BinaryIO:
    """`file`, whose errors of reading, writing and closing name `path`; the system names none for an open file."""
    return cast(BinaryIO, _Named(file, path))


class _Named:
    """A file that is as `file`, but for its errors."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            with named(self._path):
                return found(*arguments)

        return call

    def __iter__(self) -> Iterator[bytes]:
        with named(self._path):
            yield from self._file

    def __enter__(self) -> _Named:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

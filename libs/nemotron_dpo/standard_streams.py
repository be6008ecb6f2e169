"""A program's stdin, stdout and stderr where they are not as usual: closed, ASCII alone, full, or without a reader."""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TextIO


def read_names_as_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names are read as ASCII: a file of another name could not be opened."""
    if sys.getfilesystemencoding() == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_missing() -> None:
    """Open /dev/null in the place of a standard stream that the caller closed, so that no file takes its number.

    It is opened the wrong way round: reading stdin or writing stdout fails as on the closed stream. Messages are lost.
    """
    access = {"stdin": (0, "r", os.O_WRONLY), "stdout": (1, "w", os.O_RDONLY), "stderr": (2, "w", os.O_WRONLY)}
    for name, (descriptor, mode, flags) in access.items():
        if getattr(sys, name) is None:
            closed = os.open(os.devnull, flags)
            if closed != descriptor:
                os.dup2(closed, descriptor)
                os.close(closed)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def stdout_has_no_reader() -> bool:
    """Whether stdout is a pipe or a socket that nobody reads any more."""
    watch = select.poll()
    watch.register(1, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))


def end_by_sigpipe() -> None:
    """End as a program does that never heard of SIGPIPE, which Python ignores: at once, quietly, status 141 to a shell."""
    detach(sys.stdout)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def drain_stdout() -> None:
    """Flush stdout; detach it where that fails, as on a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        detach(sys.stdout)


def detach(stream: TextIO) -> None:
    """Point stdout or stderr at /dev/null so that the interpreter's final flush cannot fail a second time."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)

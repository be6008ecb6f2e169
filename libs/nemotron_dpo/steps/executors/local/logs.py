"""Copy what a stage says to stderr into a log file, while its progress bar still finds a terminal where there is one.

A stage does not end because a line of its log has no room on the disk: that is said once, and the stage goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from nemotron_dpo import machine_errors

# A process that outlives its stage may hold the other end open; what it says is not waited for.
_LAST_WORDS_SECONDS = 5


@contextlib.contextmanager
def tee_stderr(log: Path) -> Iterator[int]:
    """A descriptor to give a child as its stderr; what it writes appears on ours and, but for lines drawn anew, in `log`.

    Raises OSError where there can be no such file.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("ab", buffering=0)
    reader, writer = _terminal() if sys.stderr.isatty() else os.pipe()
    pump = threading.Thread(target=_copy, args=(reader, file), daemon=True)
    pump.start()
    try:
        yield writer
    finally:
        os.close(writer)
        pump.join(_LAST_WORDS_SECONDS)


def _terminal() -> tuple[int, int]:
    """A pseudo terminal as wide as ours that passes bytes on as they are."""
    reader, writer = pty.openpty()
    settings = termios.tcgetattr(writer)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(writer, termios.TCSANOW, settings)
    _fit(reader)
    return reader, writer


def _fit(descriptor: int) -> None:
    """Give the pseudo terminal the size of ours, which a person may change at any time."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8)))


def _copy(reader: int, file: FileIO) -> None:
    line, is_whole = b"", True
    with open(reader, "rb", buffering=0) as source, file:
        while chunk := _read(source.fileno()):
            _show(chunk)
            _fit(reader)
            *whole, line = (line + chunk).split(b"\n")
            for text in whole:
                is_whole = _kept(_last_drawn(text), file, is_whole)
        if b"\r" not in line and line:
            _kept(line, file, is_whole)
        elif _last_drawn(line).strip():  # of a program that was killed: what is said next gets a line of its own
            _show(b"\n")


def _kept(line: bytes, file: FileIO, is_whole: bool) -> bool:
    """Whether the log is whole still, with this line. The first that it lacks is said."""
    try:
        file.write(line + b"\n")
    except OSError as error:
        if is_whole:
            what = machine_errors.as_user_error(machine_errors.at(error, str(file.name)))
            _show(f"nemotron-steps: warning: {what.source}: lacks lines of what was said here ({what.message})\n".encode())
        return False
    return is_whole


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux reports that the last writer of a pseudo terminal is gone
        return b""


def _show(chunk: bytes) -> None:
    """Our own stderr may be gone; the log goes on."""
    with contextlib.suppress(OSError):
        while chunk:
            chunk = chunk[os.write(2, chunk) :]


def _last_drawn(line: bytes) -> bytes:
    """What is left of a line that was drawn several times over."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]

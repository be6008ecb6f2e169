"""Copy what a stage says to stderr into a log file, while its progress bar still finds a terminal where there is one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

# A process that outlives its stage may hold the other end open; what it says is not waited for.
_LAST_WORDS_SECONDS = 5


@contextlib.contextmanager
def tee_stderr(log: Path) -> Iterator[int]:
    """A descriptor to give a child as its stderr; what it writes appears on ours and, but for lines drawn anew, in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = _terminal() if sys.stderr.isatty() else os.pipe()
    pump = threading.Thread(target=_copy, args=(reader, log), daemon=True)
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


def _copy(reader: int, log: Path) -> None:
    line = b""
    with open(reader, "rb", buffering=0) as source, log.open("ab", buffering=0) as file:
        while chunk := _read(source.fileno()):
            _show(chunk)
            _fit(reader)
            *whole, line = (line + chunk).split(b"\n")
            for text in whole:
                file.write(_last_drawn(text) + b"\n")
        if b"\r" not in line and line:
            file.write(line + b"\n")
        elif _last_drawn(line).strip():  # of a program that was killed: what is said next gets a line of its own
            _show(b"\n")


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

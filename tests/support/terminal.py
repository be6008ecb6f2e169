"""A pseudo terminal to run a program in."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence


def in_terminal(command: Sequence[str], columns: int = 100, **streams: int) -> str:
    """What `command` writes to a terminal, which is its standard streams but for those of `streams`; it must succeed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    chunks: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, chunks))
    reader.start()
    environment = {**os.environ, "TERM": "xterm"}
    given = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams}
    try:
        done = subprocess.run(command, timeout=60, check=True, env=environment, **given)  # type: ignore[call-overload] - streams are given by name
        assert not done.stdout
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def _read(descriptor: int, chunks: list[bytes]) -> None:
    while chunk := _chunk(descriptor):
        chunks.append(chunk)


def _chunk(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux reports that the last writer of a pseudo terminal is gone
        return b""

"""Runs of nemotron-steps that are followed while a test does something to them."""

from __future__ import annotations

import os
import threading
from typing import BinaryIO

from support.waiting import wait_until

PROGRAM = "nemotron-steps"
SECRET = "planted-by-the-test-0123456789"


class Said:
    """What a program says on the pipe `stderr`, which is read as it comes: a question does not end its line."""

    def __init__(self, stderr: BinaryIO) -> None:
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read, args=(stderr,), daemon=True)
        self._reader.start()

    def so_far(self) -> str:
        """What it has said."""
        return b"".join(self._chunks).decode(errors="replace")

    def wait_for(self, text: str, times: int = 1, seconds: float = 120) -> None:
        """Wait until it has said `text` so often."""
        wait_until(lambda: self.so_far().count(text) >= times or not self._reader.is_alive(), seconds)
        assert self.so_far().count(text) >= times, self.so_far()

    def whole(self) -> str:
        """What it said to its end, which is near."""
        self._reader.join(60)
        assert not self._reader.is_alive(), f"something has its stderr still: {self.so_far()}"
        return self.so_far()

    def error_lines(self) -> list[str]:
        """Its lines of an error, without its name."""
        return error_lines(self.whole())

    def _read(self, stderr: BinaryIO) -> None:
        with stderr:
            self._chunks.extend(iter(lambda: os.read(stderr.fileno(), 1 << 16), b""))


def error_lines(said: str) -> list[str]:
    """What went wrong, without the program's name."""
    start = f"{PROGRAM}: error: "
    return [line.removeprefix(start) for line in said.splitlines() if line.startswith(start)]

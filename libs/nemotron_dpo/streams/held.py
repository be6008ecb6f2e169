"""A file that stays mapped for as long as a run lasts, and is looked at again and again: nobody may write to it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_dpo.errors import UserError


@dataclass
class HeldFile:
    """The file at `path` as it is now, which is before it is mapped and read. `is_same` reads it again and compares its rows.

    A file that was replaced by another of its name is none of it: the mapped one stays as it is.
    """

    path: Path
    is_same: Callable[[], bool]
    _seen: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = _state(self.path)

    def check(self) -> None:
        """Raise UserError where the file was written to since. One that got a new date alone is read again, once."""
        now = _state(self.path)
        if now == self._seen or now[:2] != self._seen[:2]:
            return
        if now[2] != self._seen[2] or not self.is_same():
            remedy = "give a changed file another name; what the run had saved is there"
            raise UserError("was written to while it was trained on", source=self.path, remedy=remedy)
        self._seen = now


def _state(path: Path) -> tuple[int, ...]:
    """Device, file, size in bytes and time of the last change; nothing where it is not there: what is mapped stays."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

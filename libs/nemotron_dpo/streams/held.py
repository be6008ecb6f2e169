"""A file that stays mapped for as long as a run lasts, and is looked at again and again: nobody may write to it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_dpo.errors import UserError


@dataclass
class HeldFile:
    """The file at `path` as it was when it was mapped. `is_same` reads it again and says whether its rows are those.

    A file that was replaced by another of its name is none of it: the mapped one stays as it is.
    """

    path: Path
    is_same: Callable[[], bool]
    _seen: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = _state(self.path)

    def check(self) -> None:
        """Raise UserError where the file was written to since. One that got a new date alone is read again, once."""
        try:
            now = _state(self.path)
        except OSError:
            return  # it was removed; what is mapped is there
        if now == self._seen or now[:2] != self._seen[:2]:
            return
        if now[2] != self._seen[2] or not self.is_same():
            remedy = "give a changed file another name; what the run had saved is there"
            raise UserError("was written to while it was trained on", source=self.path, remedy=remedy)
        self._seen = now


def _state(path: Path) -> tuple[int, ...]:
    """Device, file, size in bytes and time of the last change."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

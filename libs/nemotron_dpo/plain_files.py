"""Only regular files of bounded size are read where a stranger may have put something else under the name.

A pipe that nobody writes to is waited for without end, and a device such as /dev/zero fills the memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nemotron_dpo.errors import UserError

MOST_BYTES = 16_000_000


def refuse_others(path: Path) -> None:
    """Raise UserError where `path` is no regular file, or too large a one, and OSError where it is not there."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return  # reading it is an error that says so
    if not stat.S_ISREG(found.st_mode):
        raise UserError("is no regular file", source=path)
    if found.st_size > MOST_BYTES:
        raise UserError(f"has {found.st_size / 1e6:,.0f} MB where {MOST_BYTES / 1e6:.0f} are the most", source=path)

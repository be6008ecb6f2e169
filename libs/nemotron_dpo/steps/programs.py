"""Where the stage executables are: beside the running Python first, so that a virtual environment need not be active."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def executable(name: str) -> str:
    """`name` where the shell would find the right one, else its full path next to the running Python."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found and Path(found) == beside):
        return name
    return str(beside)

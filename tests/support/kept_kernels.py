"""Caches of a test's own that have what this machine's compiler made already: compiling takes seven CPU seconds.

tests/libs/kernels and tests/libs/streams compile it themselves, and other sources, compilers or CPUs have other names.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nemotron_dpo.paths import cache_home


def with_kernels(cache: Path) -> Path:
    """`cache`, a folder for XDG_CACHE_HOME that need not be there, with the libraries that the user's cache has, if any."""
    folder = cache / "nemotron-dpo"
    folder.mkdir(parents=True, exist_ok=True)
    for library in (cache_home(os.environ) / "nemotron-dpo").glob("*.so"):
        with contextlib.suppress(FileExistsError):  # another worker's, where several have that cache
            (folder / library.name).symlink_to(library.resolve())
    return cache

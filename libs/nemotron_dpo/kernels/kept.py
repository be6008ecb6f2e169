"""Libraries that the machine's own compiler builds once, and that are kept in the user's cache under
names that tell what decides what is built.

This imports no torch: what reads streams builds one, too.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from nemotron_dpo.kernels import choice
from nemotron_dpo.paths import cache_home


def digest_of(sources: Iterable[Path], compiler: Sequence[str], flags: Sequence[str]) -> str:
    """Of the sources, the compiler, its flags and the CPU; found without starting the compiler. Raises OSError."""
    known = [*choice.compiler_identity([*compiler]), *flags, choice.cpu()]
    contents = (path.read_bytes() for path in sources)
    return hashlib.sha256(b"\0".join([*contents, *(word.encode() for word in known)])).hexdigest()[:16]


def kept(name: str, environ: Mapping[str, str], build: Callable[[Path], object]) -> Path:
    """The file `name` in the cache, made by `build` where it is not there: whole or not at all, whoever builds it meanwhile.

    Raises OSError, RuntimeError for a user without a home, and what `build` raises.
    """
    target = cache_home(environ) / "nemotron-dpo" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.stem}-") as folder:
            build(Path(folder, name))
            os.replace(Path(folder, name), target)
    return target

"""The library of kernels, built once for the CPU that runs it by the machine's own compiler (`CC`, else `cc`).

There is none where `backend` has no compiler, or where that fails (as Clang does, for want of GCC's OpenMP). What is built is
kept beside the other things made once; its name tells the sources, the compiler and the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from nemotron_dpo.policy import backend

_SOURCES = [Path(__file__).with_name(name) for name in ("attention.c", "layers.c", "logits.c")]
_HEADERS = [Path(__file__).with_name(name) for name in ("products.h", "vectors.h")]
_FUNCTIONS = {  # pointers, int64, float32; those called *_room return an int64
    "forward_room": "p",
    "backward_room": "p",
    "parts_room": "p",
    "attend": "ppp",
    "attend_backward": "pppp",
    "swiglu": "ppiii",
    "swiglu_backward": "pppiii",
    "rms_norm": "ppppiifi",
    "rms_norm_backward": "pppppppiii",
    "rotate": "ppppiiiifi",
    "add_half": "ppii",
    "panels_room": "ii",
    "tiles_room": "ii",
    "read_logits": "ppppppppiiii",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_FLAGS = ("-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-std=gnu11")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library of all kernels; None where there is none."""
    try:
        command = backend.compiler(os.environ)
        return load(_built(command)) if command else None
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError):  # no home, a compiler without -march=native
        return None


def load(path: Path) -> ctypes.CDLL:
    """The library that `build` made. Raises OSError."""
    loaded = ctypes.CDLL(str(path))
    for name, types in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[one] for one in types]
        function.restype = ctypes.c_int64 if name.endswith("_room") else None
    return loaded


def build(target: Path, compiler: list[str], cpu: str = "native") -> None:
    """Compile all kernels into the library `target`, with objects beside it. Raises OSError and CalledProcessError.

    It is not linked with an OpenMP library but takes the one that torch has loaded, whatever that is called: the threads of a
    second one would fight with torch's for the cores.
    """
    objects = [target.with_name(f"{source.stem}.o") for source in _SOURCES]
    for source, made in zip(_SOURCES, objects, strict=True):
        _run([*compiler, f"-march={cpu}", *_FLAGS, "-c", str(source), "-o", str(made)])
    _run([*compiler, "-shared", "-o", str(target), *map(str, objects), "-lm"])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _built(compiler: list[str]) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemotron-dpo"
    target = root / f"kernels-{_digest(compiler)}.so"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f"{target.stem}-") as scratch:
            build(Path(scratch, target.name), compiler)
            os.replace(Path(scratch, target.name), target)
    return target


def _digest(compiler: list[str]) -> str:
    """Of everything that decides what is built, found without starting the compiler."""
    known = [*backend.identity_of(compiler), *_FLAGS, backend.cpu()]
    sources = (path.read_bytes() for path in (*_SOURCES, *_HEADERS, Path(__file__)))
    return hashlib.sha256(b"\0".join([*sources, *(word.encode() for word in known)])).hexdigest()[:16]

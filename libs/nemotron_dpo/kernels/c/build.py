"""The library of kernels in C, built once for the CPU that runs it by the machine's own compiler.

What is built is kept in the user's cache; its name tells the sources, the compiler and the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemotron_dpo.kernels.kept import digest_of, kept
from nemotron_dpo.kernels.protocol import Unavailable

_NAMES = ("attention.c", "convolution.c", "delta.c", "layers.c", "logits.c", "scan.c")
_SOURCES = [Path(__file__).with_name(name) for name in _NAMES]
_HEADERS = [Path(__file__).with_name(name) for name in ("chunks.h", "products.h", "vectors.h")]
_FUNCTIONS = {  # pointers, int64, float32; those called *_floats and *_parts return an int64
    "forward_floats": "p",
    "backward_floats": "p",
    "parts_floats": "p",
    "attend": "ppp",
    "attend_backward": "pppp",
    "swiglu": "ppiii",
    "swiglu_backward": "pppiii",
    "rms_norm": "ppppiifi",
    "rms_norm_backward": "pppppppiii",
    "rotate": "ppppiiiifi",
    "add_half": "ppii",
    "panels_floats": "ii",
    "tiles_floats": "ii",
    "read_logits": "pppppppppiiii",
    "sum_up_logits": "pppiii",
    "convolve": "pppp",
    "convolve_backward": "ppppp",
    "scan_floats": "p",
    "scan": "ppp",
    "scan_parts": "p",
    "scan_backward_floats": "p",
    "scan_backward": "ppp",
    "delta_floats": "p",
    "delta": "ppp",
    "delta_parts": "p",
    "delta_backward_floats": "p",
    "delta_backward": "ppp",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_FLAGS = ("-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-std=gnu11")


def library(compiler: list[str], environ: Mapping[str, str]) -> tuple[ctypes.CDLL, str]:
    """The library of all kernels, built unless it is in the cache, and the digest of all that decides what it computes.

    Raises Unavailable with the reason where it cannot be built, kept or loaded.
    """
    try:
        digest = _digest(compiler)
    except OSError as error:  # a CPU that does not describe itself
        raise Unavailable(f"kernels in C have no place: {_line(error)}") from None
    try:
        return load(kept(f"kernels-{digest}.so", environ, functools.partial(build, compiler=compiler))), digest
    except RuntimeError as error:  # a user without a home
        raise Unavailable(f"kernels in C have no place: {_line(error)}") from None
    except subprocess.CalledProcessError as failed:
        raise Unavailable(f"{_called(compiler)} does not compile them: {_first_error(failed)}") from None
    except OSError as error:
        raise Unavailable(f"what {_called(compiler)} compiles is not kept or not loaded: {_line(error)}") from None


def load(path: Path) -> ctypes.CDLL:
    """The library that `build` made. Raises OSError."""
    loaded = ctypes.CDLL(str(path))
    for name, types in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[one] for one in types]
        function.restype = ctypes.c_int64 if name.endswith(("_floats", "_parts")) else None
    return loaded


def build(target: Path, compiler: list[str], cpu: str = "native") -> None:
    """Compile all kernels into the library `target`, with objects beside it. Raises OSError and CalledProcessError.

    It is not linked with an OpenMP library but takes the one that torch has loaded, whatever that is called: the threads of a
    second one would fight with torch's for the cores.
    """
    objects = [target.with_name(f"{source.stem}.o") for source in _SOURCES]
    compile_one = [*compiler, f"-march={cpu}", *_FLAGS, "-c"]
    with ThreadPoolExecutor() as pool:  # each thread waits for a compiler
        commands = [[*compile_one, str(source), "-o", str(made)] for source, made in zip(_SOURCES, objects, strict=True)]
        list(pool.map(_run, commands))
    _run([*compiler, "-shared", "-o", str(target), *map(str, objects), "-lm"])


def _run(command: list[str]) -> str:
    """What `command` prints; its complaints are in English, so that the first error among them can be found."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", env=environment).stdout


def _digest(compiler: list[str]) -> str:
    """Of everything that decides what is built, found without starting the compiler. Raises OSError."""
    return digest_of((*_SOURCES, *_HEADERS, Path(__file__)), compiler, _FLAGS)


def _called(compiler: list[str]) -> str:
    """The compiler by its path, and that it is none of GCC's where it is not."""
    path = " ".join(compiler)
    try:
        macros = _run([*compiler, "-dM", "-E", "-x", "c", os.devnull])
    except (OSError, subprocess.CalledProcessError):
        macros = ""
    return path if "__GNUC__" in macros and "__clang__" not in macros else f"{path}, which is not GCC,"


def _first_error(failed: subprocess.CalledProcessError) -> str:
    """The first line of a compiler's complaints that is an error, or else the first."""
    lines = [line.strip() for line in (failed.stderr or "").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return [*errors, *lines, f"it ends with status {failed.returncode} and without a word"][0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

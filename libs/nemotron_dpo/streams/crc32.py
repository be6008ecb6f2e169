"""CRC-32 as fast as memory is read, by C: zlib's takes a twentieth of the time of reading a stream.

The library is built once for the CPU that runs it, and kept in the user's cache. It is none of the kernels, whose sources tell
whose scores are whose. Where it cannot be built or kept, or the CPU has no products without carries, zlib does the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemotron_dpo.kernels import choice
from nemotron_dpo.kernels.kept import digest_of, kept

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O2", "-march=native", "-fPIC", "-shared", "-std=gnu11")
_FEW_BYTES = 4096  # that zlib is through with before a call of C has begun


def crc32(data: Any, before: int = 0) -> int:
    """As zlib.crc32."""
    if memoryview(data).nbytes < _FEW_BYTES or (in_c := library()) is None:
        return zlib.crc32(data, before)
    buffer = pa.py_buffer(data)  # which is where the data are, not a copy
    return in_c.crc32_of(buffer.address, buffer.size, before)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions of crc32.c; None where they cannot be had."""
    try:
        return _library(os.environ)
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # no compiler, no such CPU, no place to keep it
        return None


def _library(environ: Mapping[str, str]) -> ctypes.CDLL:
    """The library, built unless it is in the cache. Raises OSError, RuntimeError and CalledProcessError where it cannot be."""
    compiler = choice.compiler(environ)
    if compiler is None or platform.machine().lower() not in ("x86_64", "amd64"):
        raise RuntimeError("there is no C compiler, or not this CPU's instructions")

    def build(target: Path) -> None:
        subprocess.run([*compiler, *_FLAGS, str(_SOURCE), "-o", str(target)], check=True, capture_output=True)

    loaded = ctypes.CDLL(str(kept(f"crc32-{digest_of([_SOURCE], compiler, _FLAGS)}.so", environ, build)))
    loaded.check_records.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    loaded.check_records.restype = ctypes.c_int64
    loaded.crc32_of.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32]
    loaded.crc32_of.restype = ctypes.c_uint32
    return loaded

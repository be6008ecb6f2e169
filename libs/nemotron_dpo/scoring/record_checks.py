"""The checksums of many records in one call, which costs a hundredth of reading them: by C where there is a compiler.

A call a record takes a third of the time of reading it, which goes to the call and not to the checksum. So a library is built
once for the CPU that runs it, and kept in the user's cache. It is none of the kernels, whose sources tell whose scores are
whose. Where it cannot be built or kept, or the CPU has no products without carries, zlib is called for each record.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nemotron_dpo.kernels import choice
from nemotron_dpo.paths import cache_home

# rows int64 [Q] -> which of them have their checksums, bool [Q]
AreWhole = Callable[[np.ndarray], np.ndarray]
_SOURCE = Path(__file__).with_name("records.c")
_FLAGS = ("-O2", "-march=native", "-fPIC", "-shared", "-std=gnu11")


def checksum(pair_id: bytes, chosen: np.ndarray, rejected: np.ndarray) -> int:
    """CRC-32 over the pair_id, the number of chosen log-probs and all log-probs of a record."""
    crc = zlib.crc32(pair_id + len(chosen).to_bytes(4, "little"))
    return zlib.crc32(np.ascontiguousarray(rejected).data, zlib.crc32(np.ascontiguousarray(chosen).data, crc))


def checks(ids: np.ndarray, checksums: np.ndarray, *sides: np.ndarray) -> AreWhole:
    """What tells which of some records have their checksums.

    `ids` are uint64 [N, 2], `checksums` uint32 [N], `sides` the chosen log-probs, float32, their offsets, int32 [N + 1], and
    the same of the rejected.
    """
    library = _library_or_none()
    arrays = ids, checksums, *sides
    return checks_by_calls(*arrays) if library is None else _checks_in_c(library, *arrays)


def checks_by_calls(ids: np.ndarray, checksums: np.ndarray, *sides: np.ndarray) -> AreWhole:
    """The same of `checks`, by a call a record."""
    chosen, chosen_ends, rejected, rejected_ends = sides

    def checksum_of(row: int) -> int:
        both = chosen[chosen_ends[row] : chosen_ends[row + 1]], rejected[rejected_ends[row] : rejected_ends[row + 1]]
        return checksum(ids[row].tobytes(), *both)

    return lambda rows: np.fromiter((checksum_of(row) for row in rows.tolist()), np.uint32, len(rows)) == checksums[rows]


def _checks_in_c(library: ctypes.CDLL, *arrays: np.ndarray) -> AreWhole:
    pointers = [x.ctypes.data for x in arrays]  # asked for once, which takes as long as some records

    def are_whole(rows: np.ndarray, _kept: tuple[np.ndarray, ...] = arrays) -> np.ndarray:
        rows, is_right = np.ascontiguousarray(rows, np.int64), np.empty(len(rows), bool)
        if library.check_records(*pointers, rows.ctypes.data, len(rows), is_right.ctypes.data):
            raise MemoryError("no memory to check a record")
        return is_right

    return are_whole


@functools.cache
def _library_or_none() -> ctypes.CDLL | None:
    try:
        return _library(os.environ)
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # no compiler, no such CPU, no place to keep it
        return None


def _library(environ: Mapping[str, str]) -> ctypes.CDLL:
    """The library, built unless it is in the cache. Raises OSError, RuntimeError and CalledProcessError where it cannot be."""
    compiler = choice.compiler(environ)
    if compiler is None:
        raise RuntimeError("there is no C compiler")
    known = [*choice.compiler_identity(compiler), *_FLAGS, choice.cpu()]
    digest = hashlib.sha256(b"\0".join([_SOURCE.read_bytes(), *(word.encode() for word in known)])).hexdigest()[:16]
    target = cache_home(environ) / "nemotron-dpo" / f"records-{digest}.so"
    if not target.exists():
        _build(compiler, target)
    loaded = ctypes.CDLL(str(target))
    loaded.check_records.argtypes = [*[ctypes.c_void_p] * 7, ctypes.c_int64, ctypes.c_void_p]
    loaded.check_records.restype = ctypes.c_int64
    return loaded


def _build(compiler: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.stem}-") as folder:
        made = Path(folder, target.name)
        subprocess.run([*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)], check=True, capture_output=True)
        os.replace(made, target)

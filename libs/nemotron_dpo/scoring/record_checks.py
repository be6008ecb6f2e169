"""The checksums of many records in one call, which costs a fiftieth of reading them; a call for each would cost a third."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable

import numpy as np

from nemotron_dpo.streams.crc32 import library

# rows int64 [Q] -> which of them have their checksums, bool [Q]
AreWhole = Callable[[np.ndarray], np.ndarray]


def checksum(pair_id: bytes, chosen: np.ndarray, rejected: np.ndarray) -> int:
    """CRC-32 over the pair_id, the number of chosen log-probs and all log-probs of a record."""
    crc = zlib.crc32(pair_id + len(chosen).to_bytes(4, "little"))
    return zlib.crc32(np.ascontiguousarray(rejected).data, zlib.crc32(np.ascontiguousarray(chosen).data, crc))


def checks(ids: np.ndarray, checksums: np.ndarray, *sides: np.ndarray) -> AreWhole:
    """What tells which of some records have their checksums.

    `ids` are uint64 [N, 2], `checksums` uint32 [N], `sides` the chosen log-probs, float32, their offsets, int32 [N + 1], and
    the same of the rejected.
    """
    in_c = library()
    arrays = ids, checksums, *sides
    return checks_by_calls(*arrays) if in_c is None else _checks_in_c(in_c, *arrays)


def checks_by_calls(ids: np.ndarray, checksums: np.ndarray, *sides: np.ndarray) -> AreWhole:
    """The same of `checks`, by a call a record."""
    chosen, chosen_ends, rejected, rejected_ends = sides

    def checksum_of(row: int) -> int:
        both = chosen[chosen_ends[row] : chosen_ends[row + 1]], rejected[rejected_ends[row] : rejected_ends[row + 1]]
        return checksum(ids[row].tobytes(), *both)

    return lambda rows: np.fromiter((checksum_of(row) for row in rows.tolist()), np.uint32, len(rows)) == checksums[rows]


def _checks_in_c(in_c: ctypes.CDLL, *arrays: np.ndarray) -> AreWhole:
    # where they lie is asked for once, which takes as long as some records
    pointers = np.array([x.ctypes.data for x in arrays], np.uintp)
    records = pointers.ctypes.data

    def are_whole(rows: np.ndarray, _kept: tuple[np.ndarray, ...] = (*arrays, pointers)) -> np.ndarray:
        is_right = np.empty(len(rows), bool)
        # a copy of the row numbers is had in less time than where they lie
        if in_c.check_records(records, rows.astype(np.int64, copy=False).tobytes(), len(rows), is_right.ctypes.data):
            raise MemoryError("no memory to check a record")
        return is_right

    return are_whole

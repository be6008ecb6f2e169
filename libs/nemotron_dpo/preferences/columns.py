"""Token ids to record batches of `tokenized_pairs`, none with more than a bounded number of tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.encoding import PairIds
from nemotron_dpo.streams import TOKENIZED_PAIRS

MAX_BATCH_TOKENS = 1 << 18


def pair_id(ids: PairIds) -> bytes:
    """16 bytes that name the three id lists: BLAKE2b over their lengths and their little-endian int32 values."""
    packed = array("i", (len(ids.prompt), len(ids.chosen), len(ids.rejected)))
    packed.fromlist(ids.prompt)
    packed.fromlist(ids.chosen)
    packed.fromlist(ids.rejected)
    return hashlib.blake2b(packed, digest_size=16).digest()


def to_batches(pairs: Sequence[PairIds], pair_ids: Sequence[bytes], lines: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Record batches of at most MAX_BATCH_TOKENS tokens each, or of one pair that is longer."""
    start, tokens = 0, 0
    for row, ids in enumerate(pairs):
        length = len(ids.prompt) + len(ids.chosen) + len(ids.rejected)
        if row > start and tokens + length > MAX_BATCH_TOKENS:
            yield _batch(pairs[start:row], pair_ids[start:row], lines[start:row])
            start, tokens = row, 0
        tokens += length
    if start < len(pairs):
        yield _batch(pairs[start:], pair_ids[start:], lines[start:])


def _batch(pairs: Sequence[PairIds], pair_ids: Sequence[bytes], lines: Sequence[int]) -> pa.RecordBatch:
    columns = [
        pa.array(pair_ids, pa.binary(16)),
        pa.array(lines, pa.int64()),
        _lists([p.prompt for p in pairs]),
        _lists([p.chosen for p in pairs]),
        _lists([p.rejected for p in pairs]),
        pa.array([p.chosen_truncated for p in pairs], pa.bool_()),
        pa.array([p.rejected_truncated for p in pairs], pa.bool_()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TOKENIZED_PAIRS)


def _lists(lists: Sequence[list[int]]) -> pa.ListArray:
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    values = array("i")
    for ids in lists:
        values.fromlist(ids)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.frombuffer(values, np.int32)), type=pa.list_(pa.int32()))

"""Turns token ids into record batches of the `tokenized_pairs` schema, each with a bounded number of tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

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


def to_batches(rows: Iterable[tuple[int, PairIds, bytes]]) -> Iterator[pa.RecordBatch]:
    """Record batches of `rows`, each of which is (source line, ids, pair id).

    A batch has at most MAX_BATCH_TOKENS tokens. A pair that is longer is a batch of its own.
    """
    columns = _Columns()
    for line, ids, digest in rows:
        length = len(ids.prompt) + len(ids.chosen) + len(ids.rejected)
        if columns.lines and columns.num_tokens + length > MAX_BATCH_TOKENS:
            yield columns.batch()
            columns = _Columns()
        columns.append(line, ids, digest)
    if columns.lines:
        yield columns.batch()


class _Lists:
    """A list column that grows. It takes 4 bytes a token; Python integers would take ten times that."""

    def __init__(self) -> None:
        self.values = array("i")
        self.offsets = array("i", [0])

    def append(self, ids: list[int]) -> None:
        self.values.fromlist(ids)
        self.offsets.append(len(self.values))

    def column(self) -> pa.ListArray:
        offsets, values = (pa.array(np.frombuffer(a, np.int32)) for a in (self.offsets, self.values))
        return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.int32()))


class _Columns:
    """The columns of one record batch that grows."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []
        self.lines: list[int] = []
        self.prompts, self.chosen, self.rejected = _Lists(), _Lists(), _Lists()
        self.truncated: list[tuple[bool, bool]] = []

    @property
    def num_tokens(self) -> int:
        return sum(len(column.values) for column in (self.prompts, self.chosen, self.rejected))

    def append(self, line: int, ids: PairIds, digest: bytes) -> None:
        self.digests.append(digest)
        self.lines.append(line)
        self.prompts.append(ids.prompt)
        self.chosen.append(ids.chosen)
        self.rejected.append(ids.rejected)
        self.truncated.append((ids.chosen_truncated, ids.rejected_truncated))

    def batch(self) -> pa.RecordBatch:
        columns = [
            pa.array(self.digests, pa.binary(16)),
            pa.array(self.lines, pa.int64()),
            self.prompts.column(),
            self.chosen.column(),
            self.rejected.column(),
            pa.array([chosen for chosen, _ in self.truncated], pa.bool_()),
            pa.array([rejected for _, rejected in self.truncated], pa.bool_()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=TOKENIZED_PAIRS)

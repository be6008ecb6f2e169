"""Turns token ids into record batches of the `tokenized_pairs` schema, each with a bounded number of tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Row:
    """One pair as it is written. `rewards` are those of the chosen and of the rejected response, None where there is none."""

    line: int
    ids: PairIds
    pair_id: bytes
    rewards: tuple[float | None, float | None] = (None, None)


def to_batches(rows: Iterable[Row], source: str = "", file: str | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of `rows`, which are all of the data set or file `source`, and of its `file` where it has several.

    A batch has at most MAX_BATCH_TOKENS tokens. A pair that is longer is a batch of its own.
    """
    columns = _Columns()
    for row in rows:
        length = len(row.ids.prompt) + len(row.ids.chosen) + len(row.ids.rejected)
        if columns.lines and columns.num_tokens + length > MAX_BATCH_TOKENS:
            yield columns.batch(source, file)
            columns = _Columns()
        columns.append(row)
    if columns.lines:
        yield columns.batch(source, file)


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
        self.rewards: list[tuple[float | None, float | None]] = []

    @property
    def num_tokens(self) -> int:
        return sum(len(column.values) for column in (self.prompts, self.chosen, self.rejected))

    def append(self, row: Row) -> None:
        self.digests.append(row.pair_id)
        self.lines.append(row.line)
        self.prompts.append(row.ids.prompt)
        self.chosen.append(row.ids.chosen)
        self.rejected.append(row.ids.rejected)
        self.truncated.append((row.ids.chosen_truncated, row.ids.rejected_truncated))
        self.rewards.append(row.rewards)

    def batch(self, source: str, file: str | None) -> pa.RecordBatch:
        columns = [
            pa.array(self.digests, pa.binary(16)),
            pa.array(self.lines, pa.int64()),
            self.prompts.column(),
            self.chosen.column(),
            self.rejected.column(),
            *(pa.array([sides[side] for sides in self.truncated], pa.bool_()) for side in (0, 1)),
            pa.array([source] * len(self.lines), pa.string()),
            *(pa.array([sides[side] for sides in self.rewards], pa.float32()) for side in (0, 1)),
            pa.array([file] * len(self.lines), pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=TOKENIZED_PAIRS)

"""One file of the store: records sorted by pair_id, each with a checksum, memory-mapped, never changed once it has its name.

The file is an Arrow IPC stream of one batch. Its sorted ids are the index: a lookup is a binary search that touches a few
pages, and no process holds more of a store than it looks at.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import IdColumn
from nemotron_dpo.scoring.record_checks import AreWhole, checks, checksum
from nemotron_dpo.streams import published_file

SUFFIX = ".arrow"
_ABOUT, _REPLACES = b"nemotron_dpo_scores", b"replaces"
_LOGPS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.binary(16), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("chosen_logps", _LOGPS, nullable=False),
        pa.field("rejected_logps", _LOGPS, nullable=False),
    ]
)


class DamagedShard(Exception):
    """The file is no shard, or no whole one."""


@dataclass(frozen=True)
class Shard:
    """`ids` uint64 [N, 2] are sorted by their first half, in little-endian order. Lists are (values, offsets [N + 1]).

    `are_whole` tells which records have their checksums; it is to be asked before they are read.
    """

    path: Path
    ids: np.ndarray
    chosen: tuple[np.ndarray, np.ndarray]
    rejected: tuple[np.ndarray, np.ndarray]
    replaces: frozenset[str]
    batch: pa.RecordBatch
    mapped: mmap.mmap
    are_whole: AreWhole

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The row of each of `ids` (uint64 [Q, 2]), int64 [Q]; -1 where the shard has none."""
        return rows_of(self.ids, ids)

    def forget(self) -> None:
        """Give back the memory of what was looked at; what is looked at again comes from the file again."""
        self.mapped.madvise(mmap.MADV_DONTNEED)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Both log-prob arrays of a record."""
        (chosen, chosen_ends), (rejected, rejected_ends) = self.chosen, self.rejected
        return chosen[chosen_ends[row] : chosen_ends[row + 1]], rejected[rejected_ends[row] : rejected_ends[row + 1]]


def rows_of(among: np.ndarray, ids: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """The row in `among` (uint64 [N, 2]) of each of `ids` (uint64 [Q, 2]), int64 [Q]; -1 where there is none.

    `among` is sorted by its first half, or `order` sorts it so. Two ids with the same first half count as not found, but one.
    """
    if not len(among):
        return np.full(len(ids), -1)
    first = among[:, 0]
    low, high = np.zeros(len(ids), np.int64), np.full(len(ids), len(among))
    while (is_open := low < high).any():  # in steps of its own: numpy's searchsorted would copy a mapped column
        middle = np.minimum((low + high) >> 1, len(among) - 1)
        is_less = first[middle if order is None else order[middle]] < ids[:, 0]
        low, high = np.where(is_open & is_less, middle + 1, low), np.where(is_open & ~is_less, middle, high)
    rows = np.minimum(low, len(among) - 1)
    rows = rows if order is None else order[rows]
    return np.where((among[rows] == ids).all(1), rows, -1)


def ids_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The pair_ids of a column as uint64 [P, 2]."""
    return IdColumn.of(column).to_numpy()


def batch_of(ids: Sequence[bytes], chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> pa.RecordBatch:
    """Records in the order given."""
    crcs = [checksum(*record) for record in zip(ids, chosen, rejected, strict=True)]
    columns = [pa.array(ids, pa.binary(16)), pa.array(crcs, pa.uint32()), _lists(chosen), _lists(rejected)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def write(path: Path, about: str, batch: pa.RecordBatch, replaces: Sequence[str] = ()) -> None:
    """Publish the records of `batch` as the new file `path`; `about` names what they were scored with."""
    order = np.argsort(ids_of(batch.column("pair_id"))[:, 0], kind="stable")
    metadata = {_ABOUT: about.encode(), _REPLACES: json.dumps(list(replaces)).encode()}
    with published_file(path) as file, pa.ipc.new_stream(file, SCHEMA.with_metadata(metadata)) as stream:
        stream.write_batch(batch.take(pa.array(order)))


def open_shard(path: Path, about: str) -> Shard:
    """Map the file. Raises DamagedShard where it is cut, of another form, or of other scores than `about` says; OSError."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with pa.ipc.open_stream(pa.py_buffer(mapped)) as stream:
            metadata, schema = stream.schema.metadata or {}, stream.schema
            if metadata.get(_ABOUT, b"").decode(errors="replace") != about or not schema.equals(SCHEMA):
                raise DamagedShard("it is of other scores or of another form")
            batch = stream.read_next_batch()
            batch.validate()
            replaces = frozenset(json.loads(metadata.get(_REPLACES, b"[]")))
            list(stream)  # the end of the stream must be there
    except (pa.ArrowException, StopIteration, ValueError, MemoryError, OverflowError) as error:
        raise DamagedShard(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    sides = [_views(batch.column(name)) for name in ("chosen_logps", "rejected_logps")]
    if any(offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(values) for values, offsets in sides):
        raise DamagedShard("its offsets are wrong")
    # not those of the mapped file, whose pages are fetched anew for every few records
    crcs = batch.column("crc32").to_numpy().copy()
    mapped.madvise(mmap.MADV_DONTNEED)
    ids = ids_of(batch.column("pair_id"))
    return Shard(path, ids, sides[0], sides[1], replaces, batch, mapped, checks(ids, crcs, *sides[0], *sides[1]))


def _lists(rows: Sequence[np.ndarray]) -> pa.ListArray:
    ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    values = np.concatenate([np.zeros(0, np.float32), *rows])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, pa.float32()))


def _views(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return column.values.to_numpy(), column.offsets.to_numpy()

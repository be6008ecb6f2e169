"""Pairs that wait on disk until all of them are known: only then can repeats be left out, or a share be held out.

They wait in a file without a name, so that memory stays bounded and nothing is left where the program is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.audit.facts import CUT_PROMPT, FactTable
from nemotron_dpo.preferences.audit.findings import OF_SEVERAL_PAIRS, OddPairs, dropped
from nemotron_dpo.preferences.held_out import HeldOut, draw
from nemotron_dpo.preferences.problems import Reject
from nemotron_dpo.preferences.tokenize_chunk import Result, row_digest
from nemotron_dpo.streams import TOKENIZED_PAIRS

# Takes pairs that are to be written, and which of their prompts were cut.
Deliver = Callable[[pa.RecordBatch, np.ndarray], object]
_ROW = pa.field("row", pa.binary())
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Fates:
    """What becomes of all pairs: those in `left_out` (by the names of --drop) go, those of `held_out` (bool [P]) go apart."""

    left_out: dict[str, OddPairs]
    held_out: np.ndarray

    @property
    def gone(self) -> np.ndarray:
        """The rows that are left out, ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(finding.rows for finding in self.left_out.values())]))


def fates(table: FactTable, drops: frozenset[str], held_out: HeldOut | None) -> Fates:
    """Decide over all pairs. Raises UserError where no pair is held out, or all are."""
    facts = table.all()
    fate = Fates(dropped(facts, drops), np.zeros(len(facts), bool))
    left = np.delete(np.arange(len(facts)), fate.gone)
    if held_out is not None and len(left):
        fate.held_out[left] = draw(facts["prompt_digest"][left], held_out)
    return fate


class Waiting:
    """Pairs in an open file, which is the caller's to close; with the rows that they are of where it `has_rows`."""

    def __init__(self, file: BinaryIO, *, has_rows: bool) -> None:
        self._file = file
        self._has_rows = has_rows
        self._writer = pa.ipc.new_stream(file, TOKENIZED_PAIRS.append(_ROW) if has_rows else TOKENIZED_PAIRS)

    def add(self, result: Result) -> None:
        """Put the pairs of `result` behind the others."""
        start = 0
        for batch in result.batches:
            rows = result.rows[start : start + batch.num_rows]
            start += batch.num_rows
            self._writer.write_batch(batch.append_column(_ROW, pa.array(rows, _ROW.type)) if self._has_rows else batch)

    def release(self, fate: Fates, table: FactTable, deliver: Deliver, apart: Deliver) -> Iterator[Reject]:
        """Deliver what stays, and `apart` what is held out; yield what is left out."""
        self._writer.close()
        self._file.seek(0)
        stays = np.ones(len(table), bool)
        stays[fate.gone] = False
        why, others = np.zeros(len(table), np.int8), np.zeros(len(table), np.int64)
        for number, finding in enumerate(fate.left_out.values()):
            assert finding.others is not None
            why[finding.rows], others[finding.rows] = number, finding.others
        names = list(fate.left_out)
        cut, start = table.all()["cut"] & CUT_PROMPT > 0, 0
        streams = ((_Gathered(deliver), stays & ~fate.held_out), (_Gathered(apart), fate.held_out))
        with pa.ipc.open_stream(self._file) as stream:
            for batch in stream:
                here = slice(start, start + batch.num_rows)
                pairs = batch.select(TOKENIZED_PAIRS.names)
                for gathered, mask in streams:
                    gathered.add(pairs.filter(pa.array(mask[here])), cut[here][mask[here]])
                for place in np.flatnonzero(~stays[here]).tolist():
                    row = start + place
                    yield _reject(table, row, batch.slice(place, 1), names[why[row]], int(others[row]))
                start += batch.num_rows
        for gathered, _ in streams:
            gathered.deliver()


def _reject(table: FactTable, row: int, pair: pa.RecordBatch, name: str, other: int) -> Reject:
    (values,) = pair.select([n for n in ("pair_id", "source_line", "row") if n in pair.schema.names]).to_pylist()
    row_read = values.get("row") or b""
    message = f"{OF_SEVERAL_PAIRS[name]}: {table.place(other)}"
    told = (name, message, None, True, values["pair_id"].hex(), row_digest(row_read), row_read)
    return Reject(table.file(row), values["source_line"], *told)


@dataclass
class _Gathered:
    """Puts small batches together, which single rows taken out of many batches are."""

    to: Deliver
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _cut: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch, cut: np.ndarray) -> None:
        if batch.num_rows:
            self._batches.append(batch)
            self._cut.append(cut)
        if sum(one.nbytes for one in self._batches) >= _BATCH_BYTES:
            self.deliver()

    def deliver(self) -> None:
        """Hand on what is gathered so far."""
        if self._batches:
            self.to(pa.concat_batches(self._batches), np.concatenate(self._cut))
        self._batches, self._cut = [], []

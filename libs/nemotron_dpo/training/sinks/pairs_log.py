"""pairs_log.arrow: a row for every pair that was trained on or validated, so that a metric leads to the pairs behind it.

It is an Arrow stream as those between the stages, with a batch a record. It grows while the run goes on: each batch is handed
to the system whole, so a reader sees, and a kill leaves, all rows of the records before. It ends with its trailer once the run
is done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemotron_dpo import __version__
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import named, named_file
from nemotron_dpo.published import replacing
from nemotron_dpo.streams import PAIRS_LOG, VERSIONS, StreamInfo, Writer, open_reader
from nemotron_dpo.training.record import TRAIN, Record
from nemotron_dpo.training.sinks import RecordedRun
from nemotron_dpo.training.sinks.jsonl import listed
from nemotron_dpo.wording import counted

if TYPE_CHECKING:
    from nemotron_dpo.training.pair_values import PairValues

NAME, SCHEMA = "pairs_log.arrow", "pairs_log"
_BUFFER_BYTES = 1 << 22  # holds a batch of 40,000 pairs, so that the system is handed a batch in one call
_Columns = Mapping[str, pa.Array]


def open_sink(run: RecordedRun) -> PairsLog:
    """The log of `run`, which every run has."""
    return PairsLog(run)


class PairsLog:
    """Appends a batch a record. Where a run is resumed, the rows up to the step that it goes on from stay, and no others."""

    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        self._names = {name: _Names() for name in ("split", "source", "source_file")}
        info = StreamInfo(SCHEMA, "dpo-train", __version__, digests=dict(run.lineage), version=VERSIONS[SCHEMA])
        path = run.folder / NAME
        kept = _kept(path, run.done, run.say) if run.done else []
        with _replacing(path) as self._file:
            self._writer = Writer(self._file, info)
            for batch in kept:
                self._append({name: _decoded(batch.column(name)) for name in batch.schema.names})

    def write(self, record: Record) -> None:
        """Append the pairs of `record`."""
        if record.pairs is not None and len(record.pairs.rows):
            self._append(_columns(record.step, record.split, record.pairs))

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with named(self._run.folder / NAME):
            os.fsync(self._file.fileno())

    def close(self, *, failed: bool = False) -> None:
        """Write the trailer where the run came to its end, and close the file; what is closed already stays as it is."""
        if self._file.closed:
            return
        with self._file:
            if not failed and self._run.stopped_by() is None:
                self._writer.finish()

    def _append(self, columns: _Columns) -> None:
        columns = {**columns, **{name: names.encoded(columns[name]) for name, names in self._names.items()}}
        self._writer.write(pa.RecordBatch.from_arrays([columns[field.name] for field in PAIRS_LOG], schema=self._writer.schema))
        self._file.flush()


class _Names:
    """The texts of a column so far, each once. A stream has them again only where there are more than before."""

    def __init__(self) -> None:
        self._known = pa.array([], pa.string())

    def encoded(self, texts: pa.Array) -> pa.Array:
        """`texts` by their places among the known ones, to which new ones are added."""
        unknown = set(texts.unique().drop_null().to_pylist()) - set(self._known.to_pylist())
        if unknown:
            self._known = pa.array([*self._known.to_pylist(), *sorted(unknown)], pa.string())
        places = pc.index_in(texts, value_set=self._known)  # type: ignore[attr-defined] - pyarrow's stubs do not know the functions it generates
        return pa.DictionaryArray.from_arrays(places, self._known)


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _columns(step: int, split: str, pairs: PairValues) -> _Columns:
    """The columns of the pairs of one record, texts as they are."""
    data, rows, size = pairs.data, np.asarray(pairs.rows, dtype=np.int64), len(pairs.rows)
    named = {"source": data.source, "source_file": data.source_file}
    lengths = {"prompt": data.prompt.lengths, "chosen": data.chosen.lengths, "rejected": data.rejected.lengths}
    return {
        "step": pa.array(np.full(size, step, dtype=np.int32)),
        "split": pa.array([split] * size, pa.string()),
        "pair_id": pa.array([data.pair_ids[row] for row in pairs.rows], pa.binary(16)),
        **{name: pa.array([names[row] or None for row in pairs.rows], pa.string()) for name, names in named.items()},
        "source_line": pa.array(data.source_lines[rows]),
        **{f"{part}_tokens": pa.array(count[rows].astype(np.int32)) for part, count in lengths.items()},
        **{field.name: pa.nulls(size, field.type) for field in PAIRS_LOG if field.nullable and field.name not in named},
        **{name: pa.array(values) for name, values in pairs.by_name.items() if name in PAIRS_LOG.names},
    }


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` once the block ends well, and stays open then."""
    with replacing(path) as temporary, contextlib.ExitStack() as unless_it_ends_well:
        file = unless_it_ends_well.enter_context(named_file(temporary.open("wb", buffering=_BUFFER_BYTES), path))
        yield file
        file.flush()
        unless_it_ends_well.pop_all()


def _kept(path: Path, done: int, say: Callable[[str], object]) -> list[pa.RecordBatch]:
    """The rows up to step `done`, a batch a record; `say` hears of what is damaged or missing among them."""
    try:
        with open_reader(path, SCHEMA) as reader:
            table, _ = reader.read_so_far()
            damaged = (reader.count_rows() or 0) - table.num_rows
    except UserError as error:
        table, damaged = PAIRS_LOG.empty_table(), 0
        if path.exists():
            say(f"warning: {error}: it is written anew")
    if damaged > 0:
        say(f"warning: {path}: is damaged behind {counted(table.num_rows, 'row')}: what follows ({damaged}) is left out")
    kept = [batch.filter(pc.less_equal(batch.column("step"), done)) for batch in table.to_batches()]  # type: ignore[attr-defined] - pyarrow's stubs do not know the functions it generates
    trained = {
        batch.column("step")[0].as_py() for batch in kept if batch.num_rows and batch.column("split")[0].as_py() == TRAIN
    }
    missing = [step for step in range(1, done + 1) if step not in trained]
    if missing:
        say(f"warning: {path}: has no pairs of training step {listed(missing)}")
    return kept

"""Where pairs and rejects go: the pairs as they come, or, where it takes all of them to know which go where, at the end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
import pyarrow as pa

from nemotron_dpo.preferences.audit.facts import CUT_PROMPT
from nemotron_dpo.preferences.audit.findings import OF_SEVERAL_PAIRS
from nemotron_dpo.preferences.held_out import HeldOut
from nemotron_dpo.preferences.problems import Reject
from nemotron_dpo.preferences.selection import Picker
from nemotron_dpo.preferences.tally import Tally
from nemotron_dpo.preferences.tokenize_chunk import Result
from nemotron_dpo.preferences.waiting import Waiting, fates
from nemotron_dpo.streams import StreamInfo, Writer, open_writer, published_file


@dataclass(frozen=True)
class Files:
    """What is written: the pairs, those that are held out of them, the rejects, each with its row where `with_rows`.

    `drops` are the names of --drop.
    """

    output: str
    held_out: HeldOut | None
    rejects: str | None
    drops: frozenset[str]
    skip_errors: bool
    with_rows: bool = False

    @property
    def needs_all(self) -> bool:
        """Whether all pairs must be known before the first one is written."""
        return self.held_out is not None or bool(self.drops & OF_SEVERAL_PAIRS.keys())


@dataclass(frozen=True)
class PairFiles:
    """Open files, and who looks at the pairs that are written. `apart` is None where nothing is held out."""

    files: Files
    picker: Picker
    writer: Writer
    apart: Writer | None
    rejects: BinaryIO | None
    waiting: Waiting | None

    def take(self, result: Result) -> None:
        """Write the rejects and pairs of a chunk, or let the pairs wait. Raises UserError for an error that is not skipped."""
        self._refuse(result.rejects)
        if self.waiting is not None:
            self.waiting.add(result)
            return
        cut, start = result.facts["cut"] & CUT_PROMPT > 0, 0
        for batch in result.batches:
            self._write(batch, cut[start : start + batch.num_rows])
            start += batch.num_rows

    def finish(self, tally: Tally) -> None:
        """Write the pairs that waited. Raises UserError where a share cannot be held out."""
        if self.waiting is None:
            return
        fate = fates(tally.table, self.files.drops, self.files.held_out)
        tally.leave_out(fate.gone)
        for reject in self.waiting.release(fate, tally.table, self._write, self._write_apart):
            tally.count([reject])
            self._refuse([reject])
        if self.files.held_out is not None and self.apart is not None:
            tally.parts = {self.files.output: self.writer.num_rows, self.files.held_out.output: self.apart.num_rows}

    def _write(self, batch: pa.RecordBatch, prompt_cut: np.ndarray) -> None:
        self.writer.write(batch)
        self.picker.offer(batch, prompt_cut)

    def _write_apart(self, batch: pa.RecordBatch, prompt_cut: np.ndarray) -> None:
        assert self.apart is not None
        self.apart.write(batch)
        self.picker.offer(batch, prompt_cut)

    def _refuse(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            if not (reject.drop or self.files.skip_errors):
                raise reject.as_error()
            if self.rejects is not None:
                self.rejects.write(_json_line(reject, with_row=self.files.with_rows))


@contextlib.contextmanager
def open_sink(files: Files, info: StreamInfo, picker: Picker) -> Iterator[PairFiles]:
    """The sink of `files`, which appear whole when the block ends well, and not at all when it does not."""
    held_out = files.held_out
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(files.output, _part(info, held_out, "rest")))
        apart = held_out and stack.enter_context(open_writer(held_out.output, _part(info, held_out, held_out.name)))
        rejects = stack.enter_context(published_file(files.rejects)) if files.rejects else None
        waiting = None
        if files.needs_all:
            nameless = stack.enter_context(tempfile.TemporaryFile(dir=_folder(files.output)))
            waiting = Waiting(nameless, has_rows=rejects is not None)
        yield PairFiles(files, picker, writer, apart, rejects, waiting)


def _part(info: StreamInfo, held_out: HeldOut | None, part: str) -> StreamInfo:
    if held_out is None:
        return info
    said = {"name": held_out.name, "share": held_out.share, "seed": held_out.seed, "part": part}
    return replace(info, settings={**info.settings, "held_out": said})


def _folder(output: str) -> Path | None:
    """The folder of a file that is written; None for stdout and devices."""
    path = Path(output)
    return None if output == "-" or (path.exists() and not path.is_file()) else path.absolute().parent


def _json_line(reject: Reject, *, with_row: bool) -> bytes:
    fields = {name: getattr(reject, name) for name in Reject.__dataclass_fields__ if name != "row"}
    if with_row:
        fields["row"] = _readable(reject.row) if reject.row else None
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _readable(row: bytes) -> object:
    """The row as JSON, or as text where it is none."""
    try:
        return orjson.loads(row)
    except orjson.JSONDecodeError:
        return row.decode(errors="backslashreplace")

"""Write a stream of record batches. The trailer is written only when the `with` block ends without an exception."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from nemotron_dpo import launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.published import published_file
from nemotron_dpo.streams.checksum import CHECKSUM_KEY, encoded, extended
from nemotron_dpo.streams.schema import SCHEMAS, TRAILER_KEY, StreamInfo, checksum_of


class Writer:
    """Writes batches and counts their rows, for the trailer and for the closing line of the program."""

    def __init__(self, sink: BinaryIO, info: StreamInfo) -> None:
        self.schema = info.attach(SCHEMAS[info.schema])
        self.num_rows = 0
        self._checksum = checksum_of(self.schema) or 0
        self._stream = pa.ipc.new_stream(sink, self.schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of `batch`, whose columns must be those of the schema. A batch without rows is not written."""
        if batch.num_rows:
            self._write(batch.cast(self.schema) if batch.schema != self.schema else batch)
            self.num_rows += batch.num_rows

    def finish(self) -> None:
        """Write the trailer: a batch without rows that carries the number of rows."""
        empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in self.schema], schema=self.schema)
        self._write(empty, {TRAILER_KEY: str(self.num_rows).encode()})
        self._stream.close()

    def _write(self, batch: pa.RecordBatch, metadata: Mapping[bytes, bytes] | None = None) -> None:
        self._checksum = extended(self._checksum, batch)
        self._stream.write_batch(batch, custom_metadata={**(metadata or {}), CHECKSUM_KEY: encoded(self._checksum)})


@contextlib.contextmanager
def open_writer(target: str | Path, info: StreamInfo) -> Iterator[Writer]:
    """A Writer on the file `target`, or on stdout for "-".

    Raises UserError (usage) for "-" on a terminal or in a multi-process job, UserError where the reader of "-" leaves early,
    OSError where the file cannot be written.
    """
    with _sink(target) as sink:
        writer = Writer(sink, info)
        yield writer
        writer.finish()


@contextlib.contextmanager
def _sink(target: str | Path) -> Iterator[BinaryIO]:
    if str(target) != "-":
        with published_file(target) as file:
            yield file
        return
    refuse_pipe_in_job("-o -")
    if sys.stdout.isatty():
        raise UserError(
            "refusing to write a binary stream to a terminal", source="<stdout>", remedy="pipe it or give -o FILE", usage=True
        )
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # text may end anywhere, a stream may not: the program fails
        raise UserError("the reader closed the pipe early", source="<stdout>") from None


def refuse_pipe_in_job(argument: str) -> None:
    """Raise UserError (usage) where this is one of several processes: only one of them would get the pipe's bytes."""
    if launcher.job_size() > 1:
        raise UserError(f"{argument} cannot be used with WORLD_SIZE > 1", remedy="use a file", usage=True)

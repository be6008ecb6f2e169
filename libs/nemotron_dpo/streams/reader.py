"""Read a stream of record batches, zero-copy from files; a stream without its trailer is an error that names its producer."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.streams.publish import published_file
from nemotron_dpo.streams.schema import SCHEMAS, TRAILER_KEY, StreamInfo
from nemotron_dpo.streams.writer import refuse_pipe_in_job


class Reader:
    """Iterates the record batches of one stream and raises UserError at its end unless the trailer agrees."""

    def __init__(self, file: Any, source: str, accept: tuple[str, ...]) -> None:
        self.source = source
        try:
            self._stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            raise UserError(
                "is not an Arrow stream or is empty", source=source, remedy="did the stage before it fail?"
            ) from None
        self.schema = self._stream.schema
        self.info = _checked_info(self.schema, source, accept)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        num_rows = 0
        promised = None
        while True:
            try:
                batch, metadata = self._stream.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            except (pa.ArrowInvalid, OSError) as error:
                raise self._incomplete(num_rows, f"is cut or damaged ({str(error).splitlines()[0]})") from None
            if batch.num_rows == 0 and metadata is not None and TRAILER_KEY in metadata:
                promised = int(metadata[TRAILER_KEY])
                continue
            num_rows += batch.num_rows
            yield batch
        if promised is None:
            raise self._incomplete(num_rows, "ends without its trailer")
        if promised != num_rows:
            raise self._incomplete(num_rows, f"has {num_rows} rows where its trailer says {promised}")

    def read_all(self) -> pa.Table:
        """Every row, as one table."""
        return pa.Table.from_batches(list(self), schema=self.schema)

    def _incomplete(self, num_rows: int, what: str) -> UserError:
        return UserError(
            f"the stream from {self.info.producer} {what} after {num_rows} rows",
            source=self.source,
            remedy=f"{self.info.producer} failed or was killed; run it again",
        )


@contextlib.contextmanager
def open_reader(source: str | Path, *accept: str) -> Iterator[Reader]:
    """A Reader on the file `source`, or on stdin for "-", that must carry one of the schemas named in `accept`.

    Raises UserError for a missing file, a foreign or newer stream, or "-" in a multi-process job.
    """
    if str(source) == "-":
        refuse_pipe_in_job("input -")
        yield Reader(sys.stdin.buffer, "<stdin>", accept)
        return
    with pa.memory_map(str(_existing(source))) as file:
        yield Reader(file, str(source), accept)


def spool(source: str, target: Path) -> Path:
    """Copy stdin to the file `target` when `source` is "-" and return the path to read.

    Raises UserError, and leaves no file, where what came through stdin is not a complete stream.
    """
    if source != "-":
        return _existing(source)
    refuse_pipe_in_job("input -")
    with published_file(target) as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
        with open(file.name, "rb") as copy:
            for _ in Reader(copy, "<stdin>", tuple(SCHEMAS)):
                pass
    return target


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.exists():
        raise UserError("no such file", source=source)
    if path.is_dir():
        raise UserError("is a folder where an Arrow stream is due", source=source)
    if path.stat().st_size == 0:
        raise UserError("is empty", source=source, remedy="did the stage before it fail?")
    return path


def _checked_info(schema: pa.Schema, source: str, accept: tuple[str, ...]) -> StreamInfo:
    info = StreamInfo.detach(schema)
    if info is None:
        raise UserError(f"is an Arrow stream but not one of {' or '.join(accept)}", source=source)
    if info.schema not in accept:
        hint = "run ref-logprobs on it first" if info.schema == "tokenized_pairs" else None
        raise UserError(f"holds {info.schema} where {' or '.join(accept)} is due", source=source, remedy=hint)
    version, columns = SCHEMAS[info.schema]
    if info.version != version or not schema.equals(columns):
        raise UserError(
            f"holds {info.schema}/{info.version}; this program reads {info.schema}/{version}",
            source=source,
            remedy=f"write it again with this version of {info.producer}",
        )
    return info

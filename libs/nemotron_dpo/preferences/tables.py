"""Parquet and Arrow files as chunks of rows, of which only the columns that somebody reads are converted."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.problems import NOT_READ

_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
TABLE_MAGICS = (_PARQUET, _ARROW_FILE, _ARROW_STREAM)
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 512


def table_chunks(raw: io.BufferedReader, name: str, magic: bytes, columns: Collection[str] | None) -> Iterator[Chunk]:
    """The rows of a Parquet, Arrow IPC file or Arrow IPC stream; a row's line is its number, from 1.

    Of its columns those in `columns` are read, or all of them for None. Raises UserError where the file is damaged.
    """
    import pyarrow as pa

    first = 1
    try:
        names, batches = _opened(raw, name, magic, columns)
        _refuse_repeated_columns(names, name)
        for batch in batches:
            for chunk in batch_chunks(batch, name, first, columns, names):
                yield chunk
                first += len(chunk.rows)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"is cut or damaged after row {first - 1}: {reason}", source=name) from None


def batch_chunks(
    batch: Any, source: str, first: int, columns: Collection[str] | None, table_columns: Sequence[str]
) -> Iterator[Chunk]:
    """The rows of a record batch, whose first one has number `first`, without what is null in them.

    Columns that are not in `columns` have NOT_READ in place of their values, be they in the batch or not.
    """
    for start in range(0, batch.num_rows, _ROWS):
        part = batch.slice(start, _ROWS)
        values = [_values(part, column, _is_read(column, columns)) for column in table_columns]
        rows = [_without_nulls(table_columns, row) for row in zip(*values, strict=True)] if values else [{}] * part.num_rows
        yield Chunk(source, first + start, rows)


def _is_read(column: str, columns: Collection[str] | None) -> bool:
    return columns is None or column in columns or column.lower() in columns


def _values(part: Any, column: str, is_read: bool) -> list[Any]:
    from nemotron_dpo.preferences.arrow_values import column_values

    index = part.schema.get_field_index(column)
    if is_read:
        return column_values(part.column(index), part.schema.field(index))
    if index < 0:
        return [NOT_READ] * part.num_rows
    return [NOT_READ if is_there else None for is_there in part.column(index).is_valid().to_pylist()]


def _without_nulls(names: Sequence[str], values: tuple[Any, ...]) -> dict[str, Any]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _refuse_repeated_columns(columns: Sequence[str], name: str) -> None:
    """Raise UserError where two columns have one name: a row could hold the values of one of them alone."""
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise UserError("is the name of more than one column", source=name, field=repeated, remedy="rename or drop one")


def _opened(
    raw: io.BufferedReader, name: str, magic: bytes, columns: Collection[str] | None
) -> tuple[Sequence[str], Iterator[Any]]:
    """The names of all columns, and the batches, which may lack those that are not in `columns`."""
    import pyarrow as pa

    if magic.startswith(_ARROW_STREAM):
        stream = pa.ipc.open_stream(ending := _Ending(raw))
        return stream.schema.names, _stream_batches(stream, ending)
    if not raw.seekable():
        raise UserError("is a Parquet or Arrow file, which cannot be read from a pipe", source=name, remedy="name the file")
    if magic.startswith(_ARROW_FILE):
        file = pa.ipc.open_file(raw)
        return file.schema.names, (file.get_batch(i) for i in range(file.num_record_batches))
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(raw, page_checksum_verification=True)
    names = parquet.schema_arrow.names
    wanted = [column for column in names if _is_read(column, columns)]
    return names, parquet.iter_batches(batch_size=_ROWS, columns=wanted)


def _stream_batches(stream: Any, ending: _Ending) -> Iterator[Any]:
    """The batches of an Arrow stream. One that was cut between batches reads like a whole one, but for its last 8 bytes."""
    import pyarrow as pa

    yield from stream
    if ending.last != _END_OF_STREAM:
        raise pa.ArrowInvalid("the stream has no end")
    if ending.read(1):
        raise pa.ArrowInvalid("more follows after the end of the stream")


class _Ending:
    """Reads for pyarrow and remembers the last 8 bytes that were read."""

    closed = False

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.last = (self.last + data[-len(_END_OF_STREAM) :])[-len(_END_OF_STREAM) :]
        return data

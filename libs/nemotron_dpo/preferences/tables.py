"""Read Parquet and Arrow files as chunks of rows; only the columns that are needed are converted to Python objects."""

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
    """The rows of a Parquet file, an Arrow IPC file or an Arrow IPC stream; the line of a row is its number, from 1.

    `magic` is the beginning of the file, which tells its format. Only the columns in `columns` are read; None reads all. Raises
    UserError where the file is damaged, where two columns have one name, and for a Parquet or Arrow file from a pipe.
    """
    import pyarrow as pa

    from nemotron_dpo.preferences.arrow_buffers import check_buffers

    first = 1
    try:
        names, batches = _opened(raw, name, magic, columns)
        _refuse_repeated_columns(names, name)
        for batch in batches:
            check_buffers(batch)
            for chunk in batch_chunks(batch, name, first, columns, names):
                yield chunk
                first += len(chunk.rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"is cut or damaged after row {first - 1}: {reason}", source=name) from None


def batch_chunks(
    batch: Any, source: str, first: int, columns: Collection[str] | None, table_columns: Sequence[str]
) -> Iterator[Chunk]:
    """The rows of a record batch, without the columns that are null in a row; `first` is the number of the first row.

    Each column of `table_columns` that is not in `columns` has NOT_READ in place of its values, even where the batch lacks it.
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
    """Raise UserError where two columns have the same name, because a row can hold the value of only one of them."""
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise UserError("is the name of more than one column", source=name, field=repeated, remedy="rename or drop one")


def _opened(
    raw: io.BufferedReader, name: str, magic: bytes, columns: Collection[str] | None
) -> tuple[Sequence[str], Iterator[Any]]:
    """The names of all columns of the table, and its record batches, which may lack the columns that are not in `columns`."""
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
    """The record batches of an Arrow stream. Raises ArrowInvalid where the stream lacks its end or has bytes after it.

    pyarrow does not notice a stream that was cut between two batches. Only its last 8 bytes differ from those of a whole one.
    """
    import pyarrow as pa

    yield from stream
    if ending.last != _END_OF_STREAM:
        raise pa.ArrowInvalid("the stream has no end")
    if ending.read(1):
        raise pa.ArrowInvalid("more follows after the end of the stream")


class _Ending:
    """A file object for pyarrow to read from; it remembers the last 8 bytes that were read."""

    closed = False

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.last = (self.last + data[-len(_END_OF_STREAM) :])[-len(_END_OF_STREAM) :]
        return data

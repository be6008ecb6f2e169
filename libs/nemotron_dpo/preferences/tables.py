"""Parquet and Arrow files as chunks of rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import Chunk

_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
TABLE_MAGICS = (_PARQUET, _ARROW_FILE, _ARROW_STREAM)
_ROWS = 512


def table_chunks(raw: io.BufferedReader, name: str, magic: bytes) -> Iterator[Chunk]:
    """The rows of a Parquet, Arrow IPC file or Arrow IPC stream; a row's line is its number, from 1."""
    import pyarrow as pa

    first = 1
    try:
        for batch in _batches(raw, name, magic):
            for start in range(0, batch.num_rows, _ROWS):
                rows = batch.slice(start, _ROWS).to_pylist()
                yield Chunk(name, first, rows)
                first += len(rows)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"is cut or damaged after row {first - 1}: {reason}", source=name) from None


def _batches(raw: io.BufferedReader, name: str, magic: bytes) -> Iterator[Any]:
    import pyarrow as pa

    if magic.startswith(_ARROW_STREAM):
        yield from pa.ipc.open_stream(raw)
        return
    if not raw.seekable():
        raise UserError("is a Parquet or Arrow file, which cannot be read from a pipe", source=name, remedy="name the file")
    if magic.startswith(_ARROW_FILE):
        file = pa.ipc.open_file(raw)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
        return
    import pyarrow.parquet as pq

    yield from pq.ParquetFile(raw).iter_batches(batch_size=_ROWS)

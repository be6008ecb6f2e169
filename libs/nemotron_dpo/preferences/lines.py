"""Lines of a text stream in chunks of bounded size; a line that is too long is skipped, not held."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
DAMAGED = (EOFError, zlib.error, OSError)  # what decompressors raise
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class TooLong:
    """Stands for a line of more than the permitted number of bytes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one source: undecoded lines, or values from a table. The first one has number `first_line`."""

    source: str
    first_line: int
    rows: list[Any]
    shape: str = ""


def line_chunks(file: BinaryIO, source: str, max_line_bytes: int) -> Iterator[Chunk]:
    """The lines of `file` as chunks, cut by size alone, so that they are the same however many workers there are."""
    rows: list[Any] = []
    first, num_bytes = 1, 0
    try:
        for line in _bounded_lines(file, max_line_bytes):
            rows.append(line)
            num_bytes += len(line) if isinstance(line, bytes) else 0
            if num_bytes >= CHUNK_BYTES or len(rows) >= CHUNK_ROWS:
                yield Chunk(source, first, rows)
                first, num_bytes, rows = first + len(rows), 0, []
    except DAMAGED:  # told after the lines before it, so that it names the right one
        if rows:
            yield Chunk(source, first, rows)
        raise
    if rows:
        yield Chunk(source, first, rows)


def _bounded_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[bytes | TooLong]:
    reader = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, 1 << 18)  # type: ignore[arg-type]
    line = reader.readline(max_line_bytes + 1).removeprefix(b"\xef\xbb\xbf")
    while line:
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = reader.readline(1 << 20)
            yield TooLong()
        else:
            yield line
        line = reader.readline(max_line_bytes + 1)

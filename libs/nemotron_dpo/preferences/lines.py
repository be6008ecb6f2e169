"""Reads the lines of a text stream in chunks of bounded size; a line that is too long is skipped, not held in memory."""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 4096
ROW_BYTES = 4 << 20  # of a row, unless a user says otherwise: about a million tokens
MOST_ROW_BYTES = 64 << 20  # a tokenizer takes some 200 times the bytes of a row, and ends the process where it gets no memory


class DamagedFile(Exception):
    """A file that ends too early or goes on too long."""


DAMAGED = (DamagedFile, EOFError, zlib.error, lzma.LZMAError, OSError)  # decompressors raise all but the first


@dataclass(frozen=True, slots=True)
class TooLong:
    """Stands for a line of more than the permitted number of bytes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one source: undecoded lines, or values from a table.

    The first row has number `first_line`. `source_name` is the data set or file that the pairs are said to be of,
    `file_name` its file where it has several. A chunk without rows stands for a source that has none.
    """

    source: str
    first_line: int
    rows: list[Any]
    row_format: str = ""
    source_name: str = ""
    file_name: str | None = None


def line_chunks(file: BinaryIO, source: str, max_line_bytes: int) -> Iterator[Chunk]:
    """The lines of `file` as chunks."""
    return in_chunks(_bounded_lines(file, max_line_bytes), source)


def in_chunks(lines: Iterable[bytes | TooLong], source: str) -> Iterator[Chunk]:
    """`lines` as chunks of about CHUNK_BYTES bytes, and of at most CHUNK_ROWS lines.

    Chunks are cut by size alone, so that they are the same for any number of workers.
    """
    rows: list[Any] = []
    first, num_bytes = 1, 0
    try:
        for line in lines:
            rows.append(line)
            num_bytes += len(line) if isinstance(line, bytes) else 0
            if num_bytes >= CHUNK_BYTES or len(rows) >= CHUNK_ROWS:
                yield Chunk(source, first, rows)
                first, num_bytes, rows = first + len(rows), 0, []
    except DAMAGED:  # raised after the lines before it, so that its message names the right line
        if rows:
            yield Chunk(source, first, rows)
        raise
    if rows:
        yield Chunk(source, first, rows)


def _bounded_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[bytes | TooLong]:
    reader = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, 1 << 18)  # type: ignore[arg-type] - it only has to be readable
    line = reader.readline(max_line_bytes + 1).removeprefix(b"\xef\xbb\xbf")
    while line:
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = reader.readline(1 << 20)
            yield TooLong()
        else:
            yield line
        line = reader.readline(max_line_bytes + 1)

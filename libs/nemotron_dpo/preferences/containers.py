"""Reads the rows of a file whose kind its first bytes tell: lines, JSON values or a table, plain or compressed.

A file of another kind is refused, and the error says what the user can do about it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, cast

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.csv_rows import csv_chunks, delimiter
from nemotron_dpo.preferences.json_values import elements, is_array, is_over_lines, objects
from nemotron_dpo.preferences.lines import DAMAGED, Chunk, in_chunks, line_chunks
from nemotron_dpo.preferences.tables import TABLE_MAGICS, table_chunks

_BUFFER = 1 << 18
_BOM = b"\xef\xbb\xbf"
# For each kind of file that is not read: its first bytes, what it is, and what the user can do about it
_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "git lfs pull"),
    (b"<!doctype html", "a web page, not the data", "download the file itself"),
    (b"<html", "a web page, not the data", "download the file itself"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it"),
    (b"\xff\x06\x00\x00snappy", "compressed by snappy", "decompress it"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (b"fea1", "a Feather file of version 1", "write it as Parquet"),
    (b"orc", "an ORC file", "write it as Parquet"),
    (b"obj\x01", "an Avro file", "write it as Parquet"),
    (b"sqlite format 3", "an SQLite database", "write its rows as JSON lines"),
)
_TAR, _TAR_AT = b"ustar", 257


def file_chunks(raw: io.BufferedReader, name: str, max_line_bytes: int, columns: Collection[str] | None) -> Iterator[Chunk]:
    """The rows of the open file `raw`, in chunks.

    `max_line_bytes` bounds a line of text. Of a table only the columns in `columns` are read, or all where it is None.
    Raises UserError where the file is damaged or is of a kind that is not read.
    """
    magic = raw.peek(8)[:8]
    if magic.startswith(TABLE_MAGICS):
        yield from table_chunks(raw, name, magic, columns)
        return
    if not magic and name.lower().endswith((".parquet", ".arrow")):
        raise UserError("has no bytes, so it is no Parquet or Arrow file", source=name)
    yield from _readable(raw, name, max_line_bytes)


def _readable(raw: io.BufferedReader, name: str, max_line_bytes: int) -> Iterator[Chunk]:
    """The rows of a text file, plain or compressed. Raises UserError, with a message of one line, where it is damaged."""
    num_read, unit = 0, "line"
    try:
        text = _decompressed(raw)
        if text.peek(len(_BOM)).startswith(_BOM):
            text.read(len(_BOM))
        head = text.peek(512)
        _refuse_foreign(head, name)
        if (sign := delimiter(name)) and not head.lstrip().startswith((b"{", b"[")):
            yield from csv_chunks(text, name, sign, max_line_bytes)
            return
        values = elements if is_array(head) else objects if is_over_lines(head) else None
        unit = "row" if values else unit
        for chunk in in_chunks(values(text, max_line_bytes), name) if values else line_chunks(text, name, max_line_bytes):
            num_read = chunk.first_line + len(chunk.rows) - 1
            yield chunk
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"is cut or damaged after {unit} {num_read}: {reason}", source=name) from None


def _refuse_foreign(head: bytes, name: str) -> None:
    """Raise UserError where `head`, the first bytes after decompression, begins a file of a kind that is not read."""
    if head.startswith((*TABLE_MAGICS, *_DECOMPRESSED)):
        raise UserError("is compressed twice, or a compressed table", source=name, remedy="decompress it")
    for magic, what, remedy in _FOREIGN:
        if head.lower().startswith(magic.lower()):
            raise UserError(f"is {what}", source=name, remedy=remedy)
    if head[_TAR_AT:].startswith(_TAR):
        raise UserError("is a tar archive", source=name, remedy="unpack it")


def _zstd(raw: io.BufferedReader) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))


def _partly(opened: Callable[[Any], Any]) -> Callable[[io.BufferedReader], BinaryIO]:
    return lambda raw: cast(BinaryIO, _Partly(opened(raw)))


_DECOMPRESSED: dict[bytes, Callable[[io.BufferedReader], BinaryIO]] = {
    b"\x1f\x8b": _partly(lambda raw: gzip.GzipFile(fileobj=raw)),
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": _partly(bz2.BZ2File),
    b"\xfd7zXZ\0": _partly(lzma.LZMAFile),
}


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    magic = raw.peek(8)[:8]
    for known, opened in _DECOMPRESSED.items():
        if magic.startswith(known):
            return io.BufferedReader(opened(raw), _BUFFER)  # type: ignore[arg-type] - it only has to be readable
    return raw


class _Partly(io.RawIOBase):
    """A compressed stream that returns all the data it has before it raises an error because the rest is missing."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

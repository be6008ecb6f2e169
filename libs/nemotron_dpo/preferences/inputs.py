"""What INPUT names: files, globs, folders and "-", plain or compressed, recognised by their first bytes, read in chunks."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import DAMAGED, Chunk, line_chunks
from nemotron_dpo.preferences.tables import TABLE_MAGICS, table_chunks

STDIN = "<stdin>"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_DATASET_ROWS = 512
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".ndjson", ".parquet", ".arrow")


def expand(inputs: Sequence[str]) -> list[str]:
    """The files that `inputs` name, in order: globs and folders sorted by name, "-" and other files as they are.

    Raises UserError where one names nothing.
    """
    return [file for name in inputs for file in _expand_one(name)]


def _expand_one(name: str) -> list[str]:
    path = Path(name)
    if name == "-" or (path.exists() and not path.is_dir()):
        return [name]
    if path.is_dir():
        files = sorted(str(p) for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
        if not files:
            raise UserError(f"is a folder without {', '.join(_SUFFIXES)} files", source=name)
        return files
    files = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    if not files:
        what = "matches no file" if glob.has_magic(name) else "no such file"
        raise UserError(what, source=name, remedy=_dataset_hint(name))
    return [file for found in files for file in _expand_one(found)]


def _dataset_hint(name: str) -> str | None:
    looks_like_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(_SUFFIXES)
    return "a Hugging Face dataset is read with --split" if looks_like_id else None


def digest(files: Sequence[str]) -> str:
    """sha256 of the bytes of `files` as they are stored, or "stream" where one can be read only once (stdin, a pipe)."""
    if any(file == "-" or not Path(file).is_file() for file in files):
        return "stream"
    digests = []
    for file in files:
        with open(file, "rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"sha256:{whole}"


def read_chunks(files: Sequence[str], max_line_bytes: int) -> Iterator[Chunk]:
    """The rows of all `files` in order. Raises UserError where one is empty, cut or unreadable."""
    for file in files:
        name = STDIN if file == "-" else file
        with _opened(file) as raw:
            num_rows = 0
            for chunk in _readable(_file_chunks(raw, name, max_line_bytes), name):
                num_rows += len(chunk.rows)
                yield chunk
            if not num_rows:
                raise UserError("is empty", source=name)


def limit_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """`chunks` up to `limit` rows in all."""
    left = limit
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        yield replace(chunk, rows=chunk.rows[:left])
        left -= len(chunk.rows)
        if left <= 0:
            return


def dataset_chunks(names: Sequence[str], split: str) -> Iterator[Chunk]:
    """The rows of one split of Hugging Face datasets, each an id (ID or ID:CONFIG) or a folder; needs the package datasets.

    Raises UserError where it is not installed or cannot load one of them.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (an optional dependency)
    except ImportError:
        raise UserError("--split needs the package datasets", remedy="pip install datasets", usage=True) from None
    for name in names:
        path, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
        try:
            rows = iter(datasets.load_dataset(path, config or None, split=split, streaming=True))
            first = 1
            while batch := list(itertools.islice(rows, _DATASET_ROWS)):
                yield Chunk(name, first, batch)
                first += len(batch)
        except Exception as error:  # datasets raises what its many readers raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"cannot be loaded by datasets: {reason}", source=f"{name} ({split})") from None


def _file_chunks(raw: io.BufferedReader, name: str, max_line_bytes: int) -> Iterator[Chunk]:
    magic = raw.peek(8)[:8]
    if magic.startswith(TABLE_MAGICS):
        yield from table_chunks(raw, name, magic)
        return
    yield from line_chunks(_decompressed(raw, magic), name, max_line_bytes)


def _decompressed(raw: io.BufferedReader, magic: bytes) -> BinaryIO:
    if magic.startswith(_GZIP):
        return io.BufferedReader(_Gunzipped(gzip.GzipFile(fileobj=raw)), 1 << 18)
    if magic.startswith(_ZSTD):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 18)  # type: ignore[arg-type]
    return raw


class _Gunzipped(io.RawIOBase):
    """A gzip stream that hands out what it has before it complains that the rest is missing."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[io.BufferedReader]:
    if file == "-":
        yield cast(io.BufferedReader, sys.stdin.buffer)
        return
    if not os.access(file, os.R_OK):
        raise UserError("cannot be read: permission denied", source=file)
    with open(file, "rb", buffering=1 << 18) as opened:
        yield cast(io.BufferedReader, opened)


def _readable(chunks: Iterator[Chunk], name: str) -> Iterator[Chunk]:
    """`chunks`, with what a damaged file raises told in one line."""
    lines_read = 0
    try:
        for chunk in chunks:
            lines_read = chunk.first_line + len(chunk.rows) - 1
            yield chunk
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"is cut or damaged after line {lines_read}: {str(error).splitlines()[0].rstrip('.')}"
        raise UserError(message, source=name) from None

"""Reads what INPUT names on this machine in chunks of rows: files, globs, folders and "-", which is stdin."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import named
from nemotron_dpo.preferences.containers import file_chunks
from nemotron_dpo.preferences.data_folders import NOT_ROWS, SUFFIXES, folder_files
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.splits import sliced

STDIN = "<stdin>"


def expand(inputs: Sequence[str]) -> list[str]:
    """The files that `inputs` name, in order: globs and folders sorted by name, "-" and other files as they are.

    Raises UserError where an input names nothing.
    """
    return [file for name in inputs for file in _expand_one(name)]


def _expand_one(name: str) -> list[str]:
    path = Path(name)
    if name == "-" or (path.exists() and not path.is_dir()):
        return [name]
    if path.is_dir():
        return folder_files(path)
    files = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    if not files:
        what = "matches no file" if glob.has_magic(name) else "no such file"
        raise UserError(what, source=name, remedy=_dataset_hint(name))
    return [file for found in files if Path(found).name not in NOT_ROWS for file in _expand_one(found)]


def _dataset_hint(name: str) -> str | None:
    looks_like_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(SUFFIXES)
    return "a Hugging Face dataset is read with --split" if looks_like_id else None


def digest(files: Sequence[str]) -> str:
    """sha256 of the bytes of `files` as they are stored, or "stream" where one can be read only once (stdin, a pipe).

    For several files it is the sha256 of their hexadecimal digests, one a line.
    """
    if any(file == "-" or not Path(file).is_file() for file in files):
        return "stream"
    digests = []
    for file in files:
        with named(file), open(file, "rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return f"sha256:{whole}"


def states(files: Sequence[str]) -> list[tuple[int, int, int] | None]:
    """(inode, size in bytes, time of change in nanoseconds) of each file; None for what is not a file.

    A caller compares two calls to find out whether a file has changed.
    """
    found = [os.stat(file) if file != "-" and Path(file).is_file() else None for file in files]
    return [state and (state.st_ino, state.st_size, state.st_mtime_ns) for state in found]


def read_chunks(
    files: Sequence[str],
    max_line_bytes: int,
    columns: Collection[str] | None = None,
    reached: Callable[[int], object] = lambda place: None,
) -> Iterator[Chunk]:
    """The rows of all `files`, in order. A file without rows gives an empty chunk.

    Of a table only the columns in `columns` are read, or all where it is None. `reached` hears how many bytes of all `files`,
    as they are stored, were read; of tables and pipes it hears nothing. Raises UserError where a file is cut or
    cannot be read, or where no file has rows.
    """
    is_empty, before = True, 0
    for file in files:
        is_file = Path(file).is_file()
        name = STDIN if file == "-" else file
        with _opened(file) as raw:
            num_rows = 0
            for chunk in file_chunks(raw, name, max_line_bytes, columns):
                num_rows += len(chunk.rows)
                if is_file and chunk.rows and isinstance(chunk.rows[0], bytes):
                    # what reads a CSV closes the file at its end
                    reached(before + (Path(file).stat().st_size if raw.closed else raw.tell()))
                yield chunk
            if not num_rows:
                yield Chunk(name, 1, [])
            is_empty = is_empty and not num_rows
        before += Path(file).stat().st_size if is_file else 0
    if is_empty:
        names = [STDIN if file == "-" else file for file in files]
        raise UserError("is empty" if len(names) == 1 else "are all empty", source=", ".join(names))


def limit_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """`chunks` up to `limit` rows in all; empty lines do not count as rows."""
    return chunks if limit is None else sliced(chunks, 0, limit)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[io.BufferedReader]:
    if file == "-":
        yield cast(io.BufferedReader, sys.stdin.buffer)
        return
    if not os.access(file, os.R_OK):
        raise UserError("cannot be read: permission denied", source=file)
    with named(file), open(file, "rb", buffering=1 << 18) as opened:
        yield cast(io.BufferedReader, opened)

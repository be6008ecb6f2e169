"""Check that a checkpoint's files still hold what was written: torch itself loads a flipped bit without an error.

`integrity.json` (`file_digests`) has the sha256 of every file. We always write it, and check it wherever there is one. Older
tools list nothing. The tensors in their shards are small zip archives, written by torch.save. torch does not check the CRCs
of these archives; we do.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata

from nemotron_dpo import file_digests
from nemotron_dpo.errors import UserError

_CHUNK_BYTES = 1 << 20


def verify(folder: Path, metadata: Metadata) -> None:
    """Read every file of `folder` once and compare it with its digest or CRCs. The ranks divide the files.

    Raises UserError that names the damaged file, on all ranks or on none.
    """
    digests = file_digests.listed(folder)
    names = sorted(digests.keys() | {info.relative_path for info in metadata.storage_data.values()})
    problem = file_digests.unlisted(folder, digests) if dist.get_rank() == 0 else None

    def problem_of(name: str) -> file_digests.FileProblem | None:
        listed = name in digests
        return file_digests.problem(folder, name, digests[name]) if listed else _crc_problem(folder / name, metadata)

    _divide(names, problem_of, problem)


def verify_listed(folder: Path) -> None:
    """As `verify`, of the files that the list of a Hugging Face folder has: its weights, which carry no checksums themselves.

    Only folders that we wrote have a list. What a person edits there, as a chat template, is not on it.
    """
    digests = file_digests.listed(folder)
    _divide(sorted(digests), lambda name: file_digests.problem(folder, name, digests[name]))


def _divide(
    names: list[str],
    problem_of: Callable[[str], file_digests.FileProblem | None],
    problem: file_digests.FileProblem | None = None,
) -> None:
    """Let each rank look at its share of `names`, and raise the first problem on all of them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for name in names[rank::size]:
        problem = problem or problem_of(name)
    problems: list[Any] = [None] * size
    dist.all_gather_object(problems, problem)
    for what in problems:
        if what is not None:
            raise UserError(what[1], source=what[0], remedy=what[2])


def _crc_problem(path: Path, metadata: Metadata) -> file_digests.FileProblem | None:
    parts = [(index.fqn, info) for index, info in metadata.storage_data.items() if info.relative_path == path.name]
    with path.open("rb") as file:
        for key, info in parts:
            if getattr(info, "transform_descriptors", None):
                continue
            try:
                with zipfile.ZipFile(_Part(file, info.offset, info.length)) as archive:  # type: ignore[arg-type] - zipfile asks it to read, seek and tell alone
                    _read_all(archive, archive.infolist())
            except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
                return str(path), f"is damaged in {key} ({error})", "copy it again"
    return None


def _read_all(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Read each member to its end, where zipfile compares the CRC. A CRC of 0 means that torch was told to write none."""
    for member in members:
        if member.CRC:
            with archive.open(member) as stream:
                while stream.read(_CHUNK_BYTES):
                    pass


class _Part(io.RawIOBase):
    """`length` bytes of `file` from `start` on, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise OSError("seek before the beginning")
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

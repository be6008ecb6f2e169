"""Whether a checkpoint's files still hold what was written: torch itself loads a flipped bit without a word.

`integrity.json` is megatron-core's own (0.19 and later, `verify_integrity=True`): the sha256 of every file of the iteration
folder. We always write it and check it wherever it lies. Files that it does not list, those of older tools, are checked by the
CRCs of the small zip archives that torch.save makes of every tensor and that torch does not look at either.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata

from nemotron_dpo.errors import UserError

NAME = "integrity.json"
_CHUNK_BYTES = 1 << 20


def write(folder: Path) -> None:
    """List every file of `folder` that is there now; one rank calls it, when all others have written theirs."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != NAME}
    (folder / NAME).write_bytes(orjson.dumps({"algorithm": "sha256", "files": files}, option=orjson.OPT_INDENT_2))


def verify(folder: Path, metadata: Metadata) -> None:
    """Read every file of `folder` once and compare; the ranks share the work, and all of them raise or none.

    Raises UserError that names the damaged file.
    """
    digests = _listed(folder)
    names = sorted(digests.keys() | {info.relative_path for info in metadata.storage_data.values()})
    rank, size = dist.get_rank(), dist.get_world_size()
    problem = None
    for name in names[rank::size]:
        path = folder / name
        problem = problem or (_digest_problem(path, digests[name]) if name in digests else _crc_problem(path, metadata))
    problems: list[Any] = [None] * size
    dist.all_gather_object(problems, problem)
    for what in problems:
        if what is not None:
            raise UserError(what[1], source=what[0], remedy=f"copy it again, or remove it from {NAME} if you changed it")


def _listed(folder: Path) -> dict[str, str]:
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        listing = orjson.loads(path.read_bytes())
        if listing["algorithm"] != "sha256":
            raise UserError(f"uses {listing['algorithm']}, which is not supported", source=path)
        files = {str(name): str(digest) for name, digest in listing["files"].items()}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is damaged ({type(error).__name__}: {error})", source=path, remedy="copy it again") from None
    outside = next((name for name in files if Path(name).name != name), None)
    if outside is not None:
        raise UserError(f"names the file {outside!r} outside the checkpoint", source=path)
    return files


def _digest_problem(path: Path, digest: str) -> tuple[str, str] | None:
    if not path.is_file():
        return str(path), f"is missing, though {NAME} lists it"
    return None if _sha256(path) == digest else (str(path), f"is damaged: its sha256 is not the one in {NAME}")


def _crc_problem(path: Path, metadata: Metadata) -> tuple[str, str] | None:
    parts = [(index.fqn, info) for index, info in metadata.storage_data.items() if info.relative_path == path.name]
    with path.open("rb") as file:
        for key, info in parts:
            if getattr(info, "transform_descriptors", None):
                continue
            try:
                with zipfile.ZipFile(_Part(file, info.offset, info.length)) as archive:  # type: ignore[arg-type]
                    _read_all(archive, archive.infolist())
            except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
                return str(path), f"is damaged in {key} ({error})"
    return None


def _read_all(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Read to the end, where zipfile compares the CRC; 0 stands where torch was told to write none."""
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

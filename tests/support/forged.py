"""Damaging a checkpoint_megatron, and hiding a pickle in it that would make a folder if it ever ran."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Unpickling this makes the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.marker,)


def saved(value: Any) -> bytes:
    """`value` as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def change_metadata(folder: Path, change: Callable[[Any], None]) -> None:
    """Rewrite `.metadata` after `change` had it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def put_object(folder: Path, key: str, data: bytes) -> None:
    """Make `key` a byte object that holds `data`, or replace it."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    path = folder / "__0_0.distcp"
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(data)

    def change(metadata: Any) -> None:
        for index in [index for index in metadata.storage_data if index.fqn == key]:
            del metadata.storage_data[index]
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(key)] = _StorageInfo("__0_0.distcp", offset, len(data))

    change_metadata(folder, change)


def largest_part(folder: Path) -> tuple[Path, int]:
    """(file, offset of a byte in the middle) of the largest tensor."""
    storage = pickle.loads((folder / ".metadata").read_bytes()).storage_data
    info = max(storage.values(), key=lambda info: info.length)
    return folder / info.relative_path, info.offset + info.length // 2


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)

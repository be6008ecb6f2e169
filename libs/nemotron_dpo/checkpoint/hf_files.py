"""The safetensors files of an HF folder: tensors read by name, and written as a stream, in shards with an index.

Neither direction holds more than a few tensors: a whole model is as much memory as can be spared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemotron_dpo.errors import UserError

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_MAPPED_BYTES = 8_000_000  # pages of a mapped file count as this process's memory until it is closed
_COMPLETE = "is the download complete?"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

# name and shape of a tensor to be written
Planned = tuple[str, Sequence[int]]


class Weights:
    """The tensors of one HF folder, in a single file or sharded with an index."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder has no safetensors, or its index is damaged."""
        self.folder = folder
        self._file_of = _index(folder)
        self._open: dict[str, Any] = {}
        self._mapped = 0

    def keys(self) -> set[str]:
        """The names of all tensors."""
        if self._file_of:
            return set(self._file_of)
        return set(self._file("model.safetensors").keys())

    def read(self, key: str) -> Tensor:
        """One tensor; it must be let go before many others are read.

        Raises UserError where it is missing or cut short, or is no plain float, as quantized weights are not.
        """
        if self._file_of and key not in self._file_of:
            raise UserError(f"does not list {key}", source=self.folder / INDEX, remedy=_COMPLETE)
        name = self._file_of.get(key, "model.safetensors")
        if self._mapped > _MAPPED_BYTES:
            self._open.clear()
            self._mapped = 0
        try:
            tensor = self._file(name).get_tensor(key)
        except SafetensorError as error:
            source = self.folder / name
            raise UserError(f"cannot give {key} ({error})", source=source, remedy=_COMPLETE) from None
        if not tensor.dtype.is_floating_point or tensor.itemsize < 2:
            what = f"holds {key} as {str(tensor.dtype).removeprefix('torch.')}, which means nothing without its scales"
            raise UserError(what, source=self.folder / name, remedy="give the model as it was before it was quantized")
        self._mapped += tensor.nbytes
        return tensor

    def _file(self, name: str) -> Any:
        path = self.folder / name
        try:
            if name not in self._open:
                self._open[name] = safe_open(path, framework="pt")
            return self._open[name]
        except FileNotFoundError:
            remedy = _COMPLETE if self._file_of else _missing(self.folder)
            raise UserError("is missing", source=path, remedy=remedy) from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot be read ({error})", source=path, remedy=_COMPLETE) from None


def write(folder: Path, plan: Sequence[Planned], tensors: Iterable[Tensor], dtype: torch.dtype, shard_bytes: int) -> list[Path]:
    """Write the `tensors` of `plan`, in its order, as files of at most `shard_bytes` (or one tensor) each, with an index.

    A model of one file is model.safetensors without an index. Raises UserError where they cannot be written.
    """
    shards = _shards(plan, dtype.itemsize, shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    stream = iter(tensors)
    try:
        for name, shard in zip(names, shards, strict=True):
            _write_file(folder / name, shard, stream, dtype)
        if len(shards) > 1:
            total = sum(_size(shape, dtype.itemsize) for _, shape in plan)
            where = {key: name for name, shard in zip(names, shards, strict=True) for key, _ in shard}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", remedy="is the disk full?") from None
    return [folder / name for name in names]


def _write_file(path: Path, shard: Sequence[Planned], stream: Iterable[Tensor], dtype: torch.dtype) -> None:
    """One safetensors file: the header's length as u64, the header as JSON, then the bytes of every tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shard:
        begin, end = end, end + _size(shape, dtype.itemsize)
        header[key] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (key, shape), tensor in zip(shard, stream, strict=False):  # the stream goes on in the next file
            assert tuple(tensor.shape) == tuple(shape), key
            file.write(tensor.to(device="cpu", dtype=dtype).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _shards(plan: Sequence[Planned], itemsize: int, limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    filled = 0
    for key, shape in plan:
        size = _size(shape, itemsize)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((key, shape))
        filled += size
    return shards


def _size(shape: Sequence[int], itemsize: int) -> int:
    return prod(shape) * itemsize


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        files: dict[str, str] = orjson.loads(path.read_bytes())["weight_map"]
        if not files:
            raise ValueError("it lists nothing")
        if any(Path(name).name != name for name in files.values()):
            raise ValueError("a file of another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is damaged ({error})", source=path, remedy=_COMPLETE) from None
    return files


def _missing(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return "only safetensors weights are read; load its .bin files in transformers and save_pretrained them"
    return "only safetensors weights are read"

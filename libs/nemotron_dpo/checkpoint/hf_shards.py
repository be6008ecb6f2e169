"""Write tensors as the safetensors files of an HF folder: a stream of shards with an index, few tensors in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

from nemotron_dpo import hf_folder, machine_errors
from nemotron_dpo.errors import UserError

SHARD_BYTES = 5_000_000_000
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
WRITTEN = frozenset(_DTYPES.values())  # safetensors' names of the precisions that a file can be written in


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    shape: Sequence[int]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write(folder: Path, plan: Sequence[Planned], tensors: Iterable[Tensor], shard_bytes: int) -> list[Path]:
    """Write the `tensors` in the order of `plan`, to files of at most `shard_bytes` or one tensor, with an index.

    A model that fits one file is model.safetensors without an index. Raises UserError where a file cannot be written.
    """
    shards = _shards(plan, shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    stream = iter(tensors)
    try:
        for name, shard in zip(names, shards, strict=True):
            write_file(folder / name, shard, stream)
        if len(shards) > 1:
            total = sum(planned.nbytes for planned in plan)
            where = {planned.name: name for name, shard in zip(names, shards, strict=True) for planned in shard}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / hf_folder.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except OSError as error:
        found = machine_errors.as_user_error(error)
        raise UserError(f"cannot be written ({found.message})", remedy=found.remedy) from None
    return [folder / name for name in names]


def write_file(path: Path, shard: Sequence[Planned], stream: Iterable[Tensor]) -> None:
    """One safetensors file: the header's length as u64, the header as JSON, then the bytes of every tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for planned in shard:
        begin, end = end, end + planned.nbytes
        kind = {"dtype": _DTYPES[planned.dtype], "shape": list(planned.shape)}
        header[planned.name] = {**kind, "data_offsets": [begin, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for planned, tensor in zip(shard, stream, strict=False):  # the next file takes the rest of the stream
            assert tuple(tensor.shape) == tuple(planned.shape), planned.name
            file.write(tensor.to(device="cpu", dtype=planned.dtype).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _shards(plan: Sequence[Planned], limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    filled = 0
    for planned in plan:
        if shards[-1] and filled + planned.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(planned)
        filled += planned.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return hf_folder.SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"

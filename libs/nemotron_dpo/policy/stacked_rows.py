"""Checkpoint entries of a parameter that stacks parts of unequal size, each divided over tensor-parallel ranks on its own.

megatron-core has the same in its MambaMixer, whose module needs Triton to be imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor


def by_parts(whole: ShardedTensor, parts: Mapping[str, int]) -> ShardedTensorFactory:
    """`whole` as one entry a part, `key.name`; `parts` are this rank's rows of each, in the order in which they are stacked."""
    like: Any = whole.without_data()

    def build(key: str, tensor: Tensor, replica_id: Any, *_: Any) -> list[ShardedTensor]:
        stacked = replace(like, key=key, data=tensor, dtype=tensor.dtype, replica_id=replica_id)
        entries, start = [], 0
        for name, rows in parts.items():
            (entry,) = stacked.narrow(0, start, rows)
            entries.append(replace(entry, key=f"{key}.{name}"))
            start += rows
        return entries

    return ShardedTensorFactory(whole.key, whole.data, build, _join, whole.replica_id)  # type: ignore[arg-type] - its types leave out what may be


def _join(parts: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat(list(parts))

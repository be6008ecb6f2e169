"""Checkpoint entries of a parameter that stacks parts of unequal size, each divided over tensor-parallel ranks on its own.

megatron-core has the same in its MambaMixer, whose module needs Triton to be imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
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


def sharded_recurrence(
    mixer: Any, prefix: str, sharded_offsets: tuple, metadata: Any, whole: Sequence[str] = ()
) -> dict[str, Any]:
    """The entries of a recurrent layer's mixer, one for each part of what in_proj and conv1d stack; `whole` is not divided."""
    metadata = ensure_metadata_has_dp_cp_group(metadata)
    groups = {"tp_group": mixer.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
    state: dict[str, Any] = {}
    for name in ("in_proj", "out_proj"):
        state |= mixer.get_submodule(name).sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
    own = {name: tensor for name, tensor in mixer.state_dict(keep_vars=True).items() if "proj" not in name}
    axes = {name: 0 for name in own if name not in whole}
    state |= make_sharded_tensors_for_checkpoint(own, prefix, axes, sharded_offsets, **groups)
    conv = {name: mixer.parts[name] for name in mixer.kind.conv_parts}
    for name, parts in (("in_proj.weight", mixer.parts), ("conv1d.weight", conv), ("conv1d.bias", conv)):
        if f"{prefix}{name}" in state:
            state[f"{prefix}{name}"] = by_parts(state[f"{prefix}{name}"], parts)
    return state


def _join(parts: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat(list(parts))

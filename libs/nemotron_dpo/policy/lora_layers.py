"""One linear layer with its adapter, alike to Megatron-Bridge's in names, values and checkpoints.

Legend: S packed tokens (this rank's part of them under sequence parallelism), I and O a layer's inputs and outputs, r the rank
of the adapter. A layer W [O, I] computes x W^T + alpha / dim * (x A^T) B^T; A [r, I] is `linear_in`, B [O, r] `linear_out`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from nemotron_dpo.policy.lora_targets import Init
from nemotron_dpo.policy.stacked_rows import by_parts


class Adapter(nn.Module):
    """alpha / dim * B A beside one tensor-parallel linear layer, split as that layer is.

    Beside a column-parallel layer A is whole on every rank and B has this rank's rows; beside a row-parallel one A has this
    rank's columns and B is whole. What is whole sees only this rank's tokens under sequence parallelism, and is marked for
    megatron-core to sum its gradient. Beside an expert's layer, whose inputs and outputs a dispatcher exchanges, what is whole
    sums its gradient itself.
    """

    def __init__(self, linear: ColumnParallelLinear | RowParallelLinear, dim: int, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        assert linear.weight is not None
        (rows, columns), where = linear.weight.shape, linear.weight.device
        self.is_row, self.is_expert = isinstance(linear, RowParallelLinear), linear.is_expert
        self.group: Any = linear.tp_group
        self.sequence_parallel = linear.config.sequence_parallel and self.group.size() > 1 and not self.is_expert
        self.scale = alpha / dim
        self.linear_in = nn.Linear(columns, dim, bias=False, device=where, dtype=dtype)
        self.linear_out = nn.Linear(dim, rows, bias=False, device=where, dtype=dtype)
        split, whole, axis = (self.linear_in, self.linear_out, 1) if self.is_row else (self.linear_out, self.linear_in, 0)
        set_tensor_model_parallel_attributes(split.weight, is_parallel=True, dim=axis, stride=1)
        whole.weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined] - megatron-core's mark on a parameter
        if self.is_expert:  # ranks that divide no expert have other experts each: of these, none is a copy in gradient norms
            set_tensor_model_parallel_attributes(whole.weight, is_parallel=self.group.rank() == 0, dim=-1, stride=1)
            for parameter in self.parameters():
                parameter.allreduce = getattr(linear.weight, "allreduce", True)  # type: ignore[attr-defined] - megatron-core's mark on a parameter

    @torch.no_grad()
    def initialize(self, a_init: Init, key: str) -> None:
        """B to zero, and A to this rank's part of what `key` alone draws, however the model is divided."""
        source = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
        dim, columns = self.linear_in.weight.shape
        ranks, rank = (self.group.size(), self.group.rank()) if self.is_row else (1, 0)
        whole = torch.empty(dim, columns * ranks)
        if a_init == "xavier":
            nn.init.xavier_normal_(whole, generator=source)
        elif a_init == "normal":
            nn.init.normal_(whole, std=0.2, generator=source)
        else:
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=source)
        self.linear_in.weight.copy_(whole.chunk(ranks, 1)[rank])
        self.linear_out.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x [S, 1, I] as the layer takes it -> [S, 1, O] as the layer gives it, in x's dtype."""
        x_in = x.to(self.linear_in.weight.dtype)
        if self.is_expert:
            a, b = self.linear_in.weight, self.linear_out.weight
            a, b = (a, _copy(b, self.group)) if self.is_row else (_copy(a, self.group), b)
            return (F.linear(F.linear(x_in, a), b) * self.scale).to(x.dtype)
        low = self.linear_in(x_in)
        if self.is_row:
            low = (reduce_scatter_to_sequence_parallel_region if self.sequence_parallel else _reduce)(low)
        else:
            low = (gather_from_sequence_parallel_region if self.sequence_parallel else _copy)(low)
        return (self.linear_out(low) * self.scale).to(x.dtype)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        """The two weights for megatron-core's checkpoints, split as they are."""
        axes = {"linear_in.weight": 1} if self.is_row else {"linear_out.weight": 0}
        groups = {"tp_group": self.group, "dp_cp_group": metadata["dp_cp_group"]}
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, axes, sharded_offsets, **groups
        )


class LoraLinear(nn.Module):
    """A frozen linear layer (`to_wrap`) with its adapter, in the place of that layer.

    `gated`: its outputs are gate over up. `parts`: they are parts of so many rows of this rank each. Ranks divide each part.
    """

    def __init__(self, to_wrap: nn.Module, adapter: Adapter, *, gated: bool, parts: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.to_wrap, self.adapter, self.gated, self.parts = to_wrap, adapter, gated, parts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """(output, bias) as megatron-core's linear layers return them."""
        out, bias = self.to_wrap(x, *args, **kwargs)
        return out + self.adapter(x), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        """The layer's own entries under its own name, the adapter's under `adapter.`."""
        adapter = self.adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)
        key, apart = f"{prefix}adapter.linear_out.weight", (metadata or {}).get("singleton_local_shards", False)
        if self.parts is not None:
            adapter[key] = by_parts(adapter[key], self.parts)
        if self.gated:
            adapter[key] = apply_swiglu_sharded_factory(adapter[key], sharded_offsets, apart)
        return {**self.to_wrap.sharded_state_dict(prefix, sharded_offsets, metadata), **adapter}  # type: ignore[operator] - a method that megatron-core's modules have

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The layer with the adapter's product added to its weight, in float32 and then cast."""
        weight: Tensor = self.to_wrap.weight  # type: ignore[assignment] - to torch any attribute may be a module
        product = self.adapter.linear_out.weight.float() @ self.adapter.linear_in.weight.float()
        weight.copy_(weight.float() + self.adapter.scale * product.to(weight.device))
        return self.to_wrap


def _copy(low: Tensor, group: Any = None) -> Tensor:
    return copy_to_tensor_model_parallel_region(low, group)


def _reduce(low: Tensor) -> Tensor:
    return reduce_from_tensor_model_parallel_region(low)

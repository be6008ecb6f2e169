"""The gated activation, of which the backward pass needs what went into it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels

T = TypeVar("T")


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2H] -> [..., H]."""
    return _SwiGlu.apply(gate_and_up, None)  # type: ignore[return-value] - torch does not type Function.apply


def through_swiglu(gate_and_up: Tensor, project: Callable[[Tensor], T]) -> T:
    """project(swiglu(gate_and_up)); where `project` would keep the activation for its gradient, it is made again instead."""
    owner = object()
    activated = _SwiGlu.apply(gate_and_up, owner)
    with torch.autograd.graph.saved_tensors_hooks(*_made_again(activated, gate_and_up.detach(), owner)):  # type: ignore[arg-type] - torch does not type Function.apply
        return project(activated)  # type: ignore[arg-type] - torch does not type Function.apply


def _made_again(activated: Tensor, gate_and_up: Tensor, owner: object) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hooks by which autograd keeps nothing of `activated`, where it would save it, and makes it again from what it is of."""
    address, shape = activated.data_ptr(), activated.shape

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return kernels().swiglu(gate_and_up, owner) if kept is None else kept

    return pack, unpack


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor, owner: object) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        ctx.owner = owner
        return kernels().swiglu(gate_and_up, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gate_and_up,) = ctx.saved_tensors
        return kernels().swiglu_backward(gate_and_up, grads[0], ctx.owner), None

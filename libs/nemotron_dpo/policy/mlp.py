"""The gated feed-forward layer, which keeps its first product for the backward pass and nothing else.

What the activation makes of that, half its size, is made again when the second product's gradient asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from nemotron_dpo.policy.kernels import layers as kernels
from nemotron_dpo.policy.workspace import room


class GatedMLP(MLP):
    """megatron-core's MLP; where the activation is a gated SiLU without biases it is computed by `swiglu`."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any) -> Any:
        """Hidden states [S, 1, H] -> (the same shape, bias or None)."""
        config = self.config
        plain = config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
        if not plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale=per_token_scale, **kwargs)
        gate_and_up, _ = self.linear_fc1(hidden_states)
        owner = object()
        activated = _SwiGlu.apply(gate_and_up, owner)
        with torch.autograd.graph.saved_tensors_hooks(*_made_again(activated, gate_and_up.detach(), owner)):
            return self.linear_fc2(activated)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2F] -> [..., F]."""
    return _SwiGlu.apply(gate_and_up, object())  # type: ignore[return-value] - torch does not type Function.apply


def _made_again(activated: Tensor, gate_and_up: Tensor, owner: object) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hooks by which autograd keeps nothing of `activated`, where it would save it, and makes it again from what it is of."""
    address, shape = activated.data_ptr(), activated.shape

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        if kernels.serve(gate_and_up):
            return kernels.swiglu(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return _SILU.of(gate, owner) * up

    return pack, unpack


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor, owner: object) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        ctx.owner = owner
        if kernels.serve(gate_and_up):
            return kernels.swiglu(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gate_and_up,) = ctx.saved_tensors
        if kernels.serve(gate_and_up):
            return kernels.swiglu_backward(gate_and_up, grads[0]), None
        gate, up = gate_and_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_and_up)
        grad_gate, grad_up = grad.chunk(2, dim=-1)
        torch.mul(_SILU.taken(gate, ctx.owner), grads[0], out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad, None


class Silu:
    """silu(gate) of the activation that was last made again, which is about to be asked for its gradient."""

    def __init__(self) -> None:
        self._owner: object = None

    def of(self, gate: Tensor, owner: object) -> Tensor:
        """Computed, and kept for `owner`; valid until another's is asked for."""
        self._owner = owner
        return torch.ops.aten.silu.out(gate, out=room("silu", *gate.shape, dtype=gate.dtype, device=gate.device))

    def taken(self, gate: Tensor, owner: object) -> Tensor:
        """As it was computed for `owner`, if that was the last one and rooms keep what is in them (on a CPU); else computed."""
        if self._owner is not owner or gate.device.type != "cpu":
            return self.of(gate, owner)
        return room("silu", *gate.shape, dtype=gate.dtype)


_SILU = Silu()

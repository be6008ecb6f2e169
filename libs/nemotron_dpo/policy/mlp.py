"""The gated feed-forward layer without temporaries: what is kept for the backward pass is its first product alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor


class GatedMLP(MLP):
    """megatron-core's MLP; where the activation is a gated SiLU without biases it is computed by `swiglu`."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any) -> Any:
        """Hidden states [S, 1, H] -> (the same shape, bias or None)."""
        config = self.config
        plain = config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
        if not plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale=per_token_scale, **kwargs)
        gate_and_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(gate_and_up))


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2F] -> [..., F]."""
    return _SwiGlu.apply(gate_and_up)  # type: ignore[return-value]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_and_up)
        grad_gate, grad_up = grad.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grads[0], out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad

"""The experts of a mixture as grouped matrix products: one kernel a projection instead of one an expert, for GPUs.

Parameters and checkpoint keys are SequentialMLP's own. The weights are joined anew for every product, in the backward pass
too, so that no copy of them is kept in between; products are torch's grouped_mm, which needs no package besides.

Legend: T tokens sorted by expert, E local experts, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor


class GroupedExperts(SequentialMLP):
    """megatron-core's SequentialMLP without biases, whose experts compute together."""

    def forward(self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor) -> Any:
        """Hidden states [T, K] of the tokens of expert 0, then 1, and so on, and their probabilities [T] -> ([T, K], None)."""
        x_TK = permuted_local_hidden_states
        if not len(x_TK):
            return super().forward(x_TK, tokens_per_expert, permuted_probs)
        ends_E = tokens_per_expert.to(x_TK.device).cumsum(0).to(torch.int32)
        experts: list[Any] = list(self.local_experts)
        hidden = grouped_linear(x_TK, ends_E, [expert.linear_fc1.weight for expert in experts])
        if self.config.gated_linear_unit:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.config.activation_func(gate) * up
        else:
            hidden = self.config.activation_func(hidden)
        hidden = (hidden * permuted_probs[:, None]).to(x_TK.dtype)
        return grouped_linear(hidden, ends_E, [expert.linear_fc2.weight for expert in experts]), None


def grouped_linear(x_TK: Tensor, ends_E: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x @ weights[e].T for the tokens of each expert e, [T, N]; `ends_E` int32 is where its tokens end; weights are [N, K]."""
    return _GroupedLinear.apply(x_TK, ends_E, *weights)  # type: ignore[return-value] - torch does not type Function.apply


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, ends_E: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x_TK, ends_E, *weights)
        return F.grouped_mm(x_TK, torch.stack(weights).transpose(1, 2), offs=ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, ends_E, *weights = ctx.saved_tensors
        grad_TN = grads[0].contiguous()
        grad_x_TK = F.grouped_mm(grad_TN, torch.stack(weights), offs=ends_E) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return grad_x_TK, None, *[None] * len(weights)
        grad_ENK = F.grouped_mm(grad_TN.t(), x_TK, offs=ends_E)
        return grad_x_TK, None, *grad_ENK.unbind()

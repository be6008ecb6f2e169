"""The products of a mixture's experts, one kernel for all of them instead of one an expert: torch's grouped_mm.

The weights are joined anew for every product, in the backward pass too, so that no copy of them is kept in between.

Legend: T tokens sorted by expert, E local experts, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one product for all experts is faster than one an expert: in bfloat16 on a GPU."""
    return device.type == "cuda" and dtype is torch.bfloat16 and hasattr(F, "grouped_mm")


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

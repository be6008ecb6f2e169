"""RMSNorm that keeps what it is given and one number a token. torch's own is made of a dozen kernels and keeps their results.

Legend: T tokens, H features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels


def rms_norm(x: Tensor, weight_H: Tensor, eps: float, zero_centered: bool) -> Tensor:
    """x [..., H] / sqrt(mean(x^2) + eps) * weight, computed in float32; one is added to a weight that is zero-centred."""
    return _RmsNorm.apply(x, weight_H, eps, zero_centered)  # type: ignore[return-value] - torch does not type Function.apply


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float, zero_centered: bool) -> Tensor:
        out, scales_T = kernels().rms_norm(x, _gain(weight_H, zero_centered), eps)
        ctx.save_for_backward(x, weight_H, scales_T)
        ctx.zero_centered = zero_centered
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight_H, scales_T = ctx.saved_tensors
        gain_H, of_gain = _gain(weight_H, ctx.zero_centered), ctx.needs_input_grad[1]
        grad, gain_grad_H = kernels().rms_norm_backward(x, gain_H, scales_T, grads[0], of_gain)
        return grad, gain_grad_H.to(weight_H.dtype) if of_gain and gain_grad_H is not None else None, None, None


def _gain(weight_H: Tensor, zero_centered: bool) -> Tensor:
    return weight_H.float() + 1 if zero_centered else weight_H.float()

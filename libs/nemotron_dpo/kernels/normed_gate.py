"""The norm and gate behind a gated delta net, whose backward pass needs what went in and one number a token and head.

Mamba-2's gated norm (`gated_norm`) gates first; this one norms each head first.

Legend: S tokens, N heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def normed_gate(y_SND: Tensor, z_SND: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """y / sqrt(mean over the head of y^2 + eps) * gain * silu(z); in float32, then rounded to the dtype of z."""
    return _NormedGate.apply(y_SND, z_SND, gain_D, eps)  # type: ignore[return-value] - torch does not type Function.apply


class _NormedGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SND: Tensor, z_SND: Tensor, gain_D: Tensor, eps: float) -> Tensor:
        y32_SND = y_SND.float()
        scales_SN1 = y32_SND.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(y_SND, z_SND, gain_D, scales_SN1)
        return (y32_SND * scales_SN1).mul_(gain_D.float()).mul_(F.silu(z_SND.float())).to(z_SND.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_SND, z_SND, gain_D, scales_SN1 = ctx.saved_tensors
        grad_SND, normed_SND, z32_SND = grads[0].float(), y_SND.float() * scales_SN1, z_SND.float()
        sigmoid_SND = torch.sigmoid(z32_SND)
        silu_SND = z32_SND * sigmoid_SND
        ungated_SND = grad_SND * normed_SND
        gain_grad_D = None
        if ctx.needs_input_grad[2]:
            gain_grad_D = (ungated_SND * silu_SND).sum((0, 1)).to(gain_D.dtype)
        slope_SND = torch.addcmul(silu_SND + sigmoid_SND, silu_SND, sigmoid_SND, value=-1)  # of silu
        z_grad_SND = ungated_SND.mul_(gain_D.float()).mul_(slope_SND).to(z_SND.dtype)
        grad_SND = silu_SND.mul_(grad_SND).mul_(gain_D.float())  # of what is normed
        mean_SN1 = (grad_SND * normed_SND).mean(-1, keepdim=True)
        y_grad_SND = grad_SND.addcmul_(normed_SND, mean_SN1, value=-1).mul_(scales_SN1).to(y_SND.dtype)
        return y_grad_SND, z_grad_SND, gain_grad_D, None

"""The gated norm of Mamba-2, whose backward pass needs what went into it and one number a token and group.

Legend: S tokens, C channels, G groups of channels, E channels of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_norm(y_SC: Tensor, z_SC: Tensor, weight_C: Tensor, num_groups: int, eps: float) -> Tensor:
    """g / sqrt(mean over the group of g^2 + eps) * weight, with g = y * silu(z); in float32, then rounded to the dtype of z."""
    return _GatedNorm.apply(y_SC, z_SC, weight_C, num_groups, eps)  # type: ignore[return-value] - torch does not type Function.apply


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SC: Tensor, z_SC: Tensor, weight_C: Tensor, num_groups: int, eps: float) -> Tensor:
        gated_SGE = _gated(y_SC, z_SC).view(len(y_SC), num_groups, -1)
        scales_SG1 = gated_SGE.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(y_SC, z_SC, weight_C, scales_SG1)
        return gated_SGE.mul_(scales_SG1).view(y_SC.shape).mul_(weight_C.float()).to(z_SC.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_SC, z_SC, weight_C, scales_SG1 = ctx.saved_tensors
        shape_SGE = (*scales_SG1.shape[:2], y_SC.shape[1] // scales_SG1.shape[1])
        z32_SC, grad_SC = z_SC.float(), grads[0].float()
        sigmoid_SC = torch.sigmoid(z32_SC)
        silu_SC = z32_SC * sigmoid_SC
        normed_SC = (y_SC.float() * silu_SC).view(shape_SGE).mul_(scales_SG1).view_as(y_SC)
        weight_grad_C = (grad_SC * normed_SC).sum(0).to(weight_C.dtype) if ctx.needs_input_grad[2] else None
        grad_SGE, normed_SGE = (grad_SC * weight_C.float()).view(shape_SGE), normed_SC.view(shape_SGE)
        mean_SG1 = (grad_SGE * normed_SGE).mean(-1, keepdim=True)
        grad_SC = grad_SGE.addcmul_(normed_SGE, mean_SG1, value=-1).mul_(scales_SG1).view_as(y_SC)
        y_grad = (grad_SC * silu_SC).to(y_SC.dtype)
        slope_SC = torch.addcmul(silu_SC + sigmoid_SC, silu_SC, sigmoid_SC, value=-1)  # of silu
        return y_grad, grad_SC.mul_(y_SC).mul_(slope_SC).to(z_SC.dtype), weight_grad_C, None, None


def _gated(y_SC: Tensor, z_SC: Tensor) -> Tensor:
    """y * silu(z) in float32, in memory of its own."""
    return F.silu(z_SC.float()).mul_(y_SC)

"""RMSNorm by torch's operations, into memory that is used again.

Legend: T tokens, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch


def rms_norm(x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `Kernels.rms_norm`."""
    normed_TH = _scratch("norm", x).copy_(x.reshape(-1, x.shape[-1]))
    scales_T1 = torch.square(normed_TH, out=_scratch("norm product", x)).mean(-1, keepdim=True).add_(eps).rsqrt_()
    return _narrow(normed_TH.mul_(scales_T1).mul_(gain_H), x), scales_T1.squeeze(1)


def rms_norm_backward(x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor, of_gain: bool) -> tuple[Tensor, Tensor | None]:
    """As `Kernels.rms_norm_backward`."""
    scales_T1 = scales_T[:, None]
    normed_TH = _scratch("norm", x).copy_(x.reshape(-1, x.shape[-1])).mul_(scales_T1)
    grad_TH = _scratch("norm gradient", x).copy_(grad.reshape(normed_TH.shape))
    product_TH = torch.mul(grad_TH, normed_TH, out=_scratch("norm product", x))
    gain_grad_H = product_TH.sum(0) if of_gain else None
    mean_T1 = (product_TH @ gain_H).div_(x.shape[-1])[:, None]
    return _narrow(grad_TH.mul_(gain_H).addcmul_(normed_TH, mean_T1, value=-1).mul_(scales_T1), x), gain_grad_H


def _scratch(name: str, x: Tensor) -> Tensor:
    """Float32 [T, H] for `x`."""
    return scratch(name, x.numel() // x.shape[-1], x.shape[-1], device=x.device)


def _narrow(values_TH: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).copy_(values_TH.view(like.shape))

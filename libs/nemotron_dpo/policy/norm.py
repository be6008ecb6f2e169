"""RMSNorm and LayerNorm of ours for megatron-core's layer specs, where Transformer Engine and Apex are not needed.

megatron-core's wrapper of the torch norms refuses sequence parallelism and zero-centred weights; these take both. Under
sequence parallelism a tensor-parallel rank sees a part of the tokens: weights are marked so that their gradients are summed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_dpo.policy.kernels import layers as kernels
from nemotron_dpo.policy.workspace import room


class Norm(nn.Module):
    """The norm that `config.normalization` names over the last axis; takes the arguments that layer specs pass."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.shape, self.eps, self.zero_centered = (hidden_size,), eps, config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        with_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype)) if with_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined] - megatron-core's mark on a parameter

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> the same shape and dtype."""
        if self.bias is None:
            return _RmsNorm.apply(x, self.weight, self.eps, self.zero_centered)  # type: ignore[return-value] - torch does not type Function.apply
        if self.zero_centered:  # in float32: one plus a small bfloat16 is one
            bias = self.bias.float()
            return F.layer_norm(x.float(), self.shape, self.weight.float() + 1, bias, self.eps).to(x.dtype)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight in float32. torch's own is made of a dozen kernels whose results it all keeps.

    Legend: T tokens, H hidden.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, zero_centered: bool) -> Tensor:
        ctx.zero_centered = zero_centered
        if kernels.serve(x):
            out, scale_T = kernels.rms_norm(x, _gain(weight, zero_centered), eps)
            ctx.save_for_backward(x, weight, scale_T[:, None])
            return out
        normed_TH = _room("norm", x).copy_(x.reshape(-1, x.shape[-1]))
        scale_T1 = torch.square(normed_TH, out=_room("norm product", x)).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale_T1)
        return _narrow(normed_TH.mul_(scale_T1).mul_(_gain(weight, zero_centered)), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale_T1 = ctx.saved_tensors
        gain_H = _gain(weight, ctx.zero_centered)
        if kernels.serve(x):
            grad, grad_gain_H = kernels.rms_norm_backward(x, gain_H, scale_T1, grads[0])
            return grad, grad_gain_H.to(weight.dtype), None, None
        normed_TH = _room("norm", x).copy_(x.reshape(-1, x.shape[-1])).mul_(scale_T1)
        grad_TH = _room("norm gradient", x).copy_(grads[0].reshape(normed_TH.shape))
        product_TH = torch.mul(grad_TH, normed_TH, out=_room("norm product", x))
        grad_weight = product_TH.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        mean_T1 = (product_TH @ gain_H).div_(x.shape[-1])[:, None]
        return _narrow(grad_TH.mul_(gain_H).addcmul_(normed_TH, mean_T1, value=-1).mul_(scale_T1), x), grad_weight, None, None


def _room(name: str, x: Tensor) -> Tensor:
    """Float32 [T, H] for `x`."""
    return room(name, x.numel() // x.shape[-1], x.shape[-1], device=x.device)


def _narrow(values_TH: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).copy_(values_TH.view(like.shape))


def _gain(weight: Tensor, zero_centered: bool) -> Tensor:
    return weight.float() + 1 if zero_centered else weight.float()

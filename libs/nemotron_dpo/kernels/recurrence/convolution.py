"""The causal convolution in front of a recurrence, over a packed row.

Legend: S packed tokens, C channels, W taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.chunks import Chunks


def causal_conv(x_SC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, chunks: Chunks) -> Tensor:
    """Of each channel the bias and the weighted sum of its last W tokens along the path: weight[:, -1] is of the token itself.

    A response's first tokens take the prompt's last ones; before a path's first token there is zero. Sums are float32, the
    result is of x's dtype. Tokens in no piece get zero.
    """
    return _Convolution.apply(x_SC, weight_CW, bias_C, chunks)  # type: ignore[return-value] - torch does not type it


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, chunks: Chunks) -> Tensor:
        ctx.save_for_backward(x_SC, weight_CW)
        ctx.chunks, ctx.bias_dtype = chunks, bias_C.dtype if bias_C is not None else None
        return kernels().convolve(x_SC, weight_CW, bias_C, chunks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_SC, weight_CW = ctx.saved_tensors
        dx_SC, dweight_CW, dbias_C = kernels().convolve_backward(grads[0], x_SC, weight_CW, ctx.chunks)
        return dx_SC, dweight_CW, dbias_C.to(ctx.bias_dtype) if ctx.bias_dtype else None, None

"""The recurrence of Mamba-2 over a packed row; it keeps its inputs for the backward pass, and no state.

Legend: S packed tokens, N heads, D head size, G groups of heads that share B and C, K state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.chunks import Chunks


def scan(x_SND: Tensor, dt_SN: Tensor, A_N: Tensor, B_SGK: Tensor, C_SGK: Tensor, D_N: Tensor, chunks: Chunks) -> Tensor:
    """y [S, N, D] of h = exp(dt * A) h + dt * B x^T and y = h^T C + D x along each path, from h = 0.

    That is Dao and Gu 2024, section 2. dt is what the step is, after softplus and bias; A is negative. Sums are float32, y is
    of x's dtype. Tokens in no piece get zero.
    """
    return _Scan.apply(x_SND, dt_SN, A_N, B_SGK, C_SGK, D_N, chunks)  # type: ignore[return-value] - torch does not type it


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunks: Chunks) -> Tensor:
        ctx.save_for_backward(x, dt, A, B, C, D)
        ctx.chunks = chunks
        return kernels().scan(x, dt, A, B, C, D, chunks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D = ctx.saved_tensors
        return *kernels().scan_backward(grads[0], x, dt, A, B, C, D, ctx.chunks), None

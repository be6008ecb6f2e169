"""Rotary positions in three passes over queries or keys, and as many back; megatron-core's own take a dozen.

Angles repeat after half of the rotated size, as in every architecture here: entry i turns with entry i + half. So the inverse
turns by the negative angle, and nothing is kept for the backward pass but the angles, which are made once for all layers.

Legend: S tokens, N heads, D head size, T the part of it that is rotated.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels


def rotate(x_SND: Tensor, angles_ST: Tensor, amplitude: float = 1.0) -> Tensor:
    """Queries or keys [S, 1, N, D], turned by angles [S, 1, 1, T] in radians; rounded after each pass, as in transformers.

    What is turned is multiplied with `amplitude` as well.
    """
    return _Rotate.apply(x_SND, *_waves(angles_ST, amplitude, x_SND.dtype))  # type: ignore[return-value] - torch does not type Function.apply


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SND: Tensor, cos_ST: Tensor, sin_ST: Tensor) -> Tensor:
        ctx.waves = cos_ST, sin_ST
        return kernels().rotate(x_SND, cos_ST, sin_ST, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_ST, sin_ST = ctx.waves
        return kernels().rotate(grads[0], cos_ST, sin_ST, -1), None, None


@functools.lru_cache(maxsize=4)
def _waves(angles_ST: Tensor, amplitude: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines, and sines of which those that meet the first half are negative."""
    cos_ST, sin_ST = angles_ST.cos(), angles_ST.sin()
    sin_ST[..., : sin_ST.shape[-1] // 2].neg_()
    if amplitude != 1.0:
        cos_ST, sin_ST = cos_ST * amplitude, sin_ST * amplitude
    return cos_ST.to(dtype), sin_ST.to(dtype)

"""Rotary positions by torch's operations.

Legend: S tokens, N heads, D head size, T the part of it that is rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_SND: Tensor, cos_ST: Tensor, sin_ST: Tensor, direction: int) -> Tensor:
    """As `Kernels.rotate`."""
    size = cos_ST.shape[-1]
    turned_SNT = x_SND[..., :size]
    opposite_SNT = turned_SNT.roll(size // 2, -1)
    turned_SNT = (turned_SNT * cos_ST).addcmul_(opposite_SNT, sin_ST, value=direction)
    return turned_SNT if size == x_SND.shape[-1] else torch.cat((turned_SNT, x_SND[..., size:]), -1)

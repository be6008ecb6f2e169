"""The angles of rotary positions: one frequency for each pair of channels that turn, times the position along the path.

The numbers are those of transformers' modeling_rope_utils, to the bit.

Legend: L tokens that this context-parallel rank holds, T the part of a head that is rotated, F = T / 2 frequencies.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from nemotron_dpo.kernels.rotary import rotate
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.sublayers.rotary import Linear, Llama3Scaling, LongRope, Rotary, Yarn


def turned(x_LND: Tensor, row: PackedRow, rotary: Rotary | None) -> Tensor:
    """Queries or keys [L, 1, N, D] of `row`, each turned by its position; as they are where there are none."""
    if rotary is None:
        return x_LND
    return rotate(x_LND, angles(row, rotary, x_LND.shape[3]), rotary.amplitude)


@functools.lru_cache(maxsize=4)  # a policy has two kinds at most that we know of
@torch.inference_mode(False)
def angles(row: PackedRow, rotary: Rotary, head_size: int) -> Tensor:
    """Angles float32 [L, 1, 1, T] in radians; made once for all layers of a pass."""
    frequencies_F = frequencies(rotary, head_size).to(row.positions_L.device)
    angles_LF = row.positions_L.float()[:, None] * frequencies_F
    return torch.cat((angles_LF, angles_LF), -1)[:, None, None]


def frequencies(rotary: Rotary, head_size: int, *, is_long: bool = False) -> Tensor:
    """Radians a position float32 [F]; `is_long` of LongRope are those of texts beyond the original length."""
    size = rotary.size(head_size)
    waves_F = rotary.base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    match rotary.scaling:
        case Linear(factor):
            return 1.0 / waves_F / factor
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / waves_F, scaling)
        case Yarn() as scaling:
            return _yarn(waves_F, rotary.base, size, scaling)
        case LongRope() as scaling:
            return 1.0 / (torch.tensor(scaling.long if is_long else scaling.short, dtype=torch.float32) * waves_F)
        case _:  # Dynamic changes nothing within the positions that a policy has
            return 1.0 / waves_F


def _llama3(plain_F: Tensor, scaling: Llama3Scaling) -> Tensor:
    low, high, original = scaling.low_frequency, scaling.high_frequency, scaling.original_length
    lengths_F = 2 * math.pi / plain_F
    scaled_F = torch.where(lengths_F > original / low, plain_F / scaling.factor, plain_F)
    part_F = (original / lengths_F - low) / (high - low)
    smooth_F = (1 - part_F) * scaled_F / scaling.factor + part_F * scaled_F
    is_between = ~(lengths_F < original / high) & ~(lengths_F > original / low)
    return torch.where(is_between, smooth_F, scaled_F)


def _yarn(waves_F: Tensor, base: float, size: int, scaling: Yarn) -> Tensor:
    def channel(turns: float) -> float:
        """The one whose wave turns so often within the original length."""
        return size * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp_F = (torch.arange(size // 2, dtype=torch.float32) - first) / (last - first if last != first else 0.001)
    plain_part_F = 1 - ramp_F.clamp(0, 1)
    return 1.0 / (scaling.factor * waves_F) * (1 - plain_part_F) + 1.0 / waves_F * plain_part_F

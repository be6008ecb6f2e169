"""The angles of rotary positions: one frequency for each pair of channels that turn, times the position along the path.

The numbers are those of transformers' modeling_rope_utils, to the bit.

Legend: L tokens that this context-parallel rank holds, T the part of a head that is rotated, F = T / 2 frequencies.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels.rotary import rotate
from nemotron_dpo.policy.device import to_device
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.sublayers.rotary import LinearScaling, Llama3Scaling, LongRope, Rotary, Yarn


def turned(x_LND: Tensor, row: PackedRow, rotary: Rotary | None) -> Tensor:
    """Queries or keys [L, 1, N, D] of `row`, each turned by its position; as they are where there are none."""
    if rotary is None:
        return x_LND
    return rotate(x_LND, angles(row, rotary, x_LND.shape[3]), rotary.amplitude)


def grown(query_LND: Tensor, row: PackedRow, rotary: Rotary | None) -> Tensor:
    """Turned queries [L, 1, N, D], larger the farther behind the original length they are, where a model has them so."""
    scaling = None if rotary is None else rotary.scaling
    if not isinstance(scaling, Yarn) or scaling.query_growth is None or row.longest <= scaling.original_length:
        return query_LND
    return query_LND * _growth(row, scaling.original_length, scaling.query_growth).to(query_LND.dtype)


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)
def _growth(row: PackedRow, original: int, growth: float) -> Tensor:
    """Factors float32 [L, 1, 1, 1] by the position along the path, to the bit those of transformers' Ministral 3."""
    return (1 + growth * torch.log(1 + torch.floor(row.positions_L / original)))[:, None, None, None]


@functools.lru_cache(maxsize=4)  # a policy has two kinds at most that we know of
@torch.inference_mode(False)
def angles(row: PackedRow, rotary: Rotary, head_size: int) -> Tensor:
    """Angles float32 [L, 1, 1, T] in radians; made once for all layers of a pass."""
    positions_L1 = row.positions_L.float()[:, None]
    angles_LF = positions_L1 * frequencies(rotary, head_size).to(positions_L1.device)
    if isinstance(rotary.scaling, LongRope):
        long_LF = positions_L1 * frequencies(rotary, head_size, is_long=True).to(positions_L1.device)
        angles_LF = torch.where(_is_long(row, rotary.scaling.original_length)[:, None], long_LF, angles_LF)
    return torch.cat((angles_LF, angles_LF), -1)[:, None, None]


def _is_long(row: PackedRow, original: int) -> Tensor:
    """Which of the tokens held are of texts of more than `original` tokens, bool [L].

    Raises UserError where one response of a pair makes the text so long and the other does not: they share the prompt, whose
    keys would have to be turned by both.
    """
    is_long_S = np.zeros(row.num_tokens, dtype=bool)
    for pair in row.segments[: row.num_pairs]:
        prompt = pair.chosen - pair.prompt
        lengths = prompt + pair.rejected - pair.chosen, prompt + pair.end - pair.rejected
        if min(lengths) <= original < max(lengths):
            what = f"a prompt has {lengths[0]} tokens with its chosen and {lengths[1]} with its rejected response, and longrope"
            what += f" turns texts of up to {original} tokens otherwise than longer ones"
            raise UserError(what, remedy=f"leave such pairs out, or set the most tokens to {original}")
        is_long_S[pair.prompt : pair.end] = min(lengths) > original
    is_long = to_device(is_long_S)
    return is_long if row.share is None else is_long[row.share.tokens_L]


def frequencies(rotary: Rotary, head_size: int, *, is_long: bool = False) -> Tensor:
    """Radians a position float32 [F]; `is_long` of LongRope are those of texts beyond the original length."""
    size = rotary.size(head_size)
    waves_F = rotary.base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    match rotary.scaling:
        case LinearScaling(factor):
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

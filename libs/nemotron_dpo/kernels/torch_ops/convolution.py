"""The causal convolution of a recurrent layer by torch's operations: a token's channels with those of the tokens before it on
its path.

Legend: S packed tokens, C channels, W taps: the last is of the token itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import ROOT, Chunks


@dataclass(frozen=True)
class Tap:
    """Which token stands `before` tokens before each on its path, as an index with the places where there is none.

    earlier_S, is_missing_S1: that token. later_S, is_last_S1: a token that this one stands before so. others: further ones, as
    (these tokens, those); no token is twice in one of them.
    """

    before: int
    earlier_S: Tensor
    is_missing_S1: Tensor
    later_S: Tensor
    is_last_S1: Tensor
    others: tuple[tuple[Tensor, Tensor], ...]


def convolve(x_SC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, chunks: Chunks) -> Tensor:
    """As `Kernels.convolve`."""
    dtype = _wide(x_SC)
    weight_WC = weight_CW.to(dtype).t()
    out_SC = torch.zeros(x_SC.shape, dtype=dtype, device=x_SC.device)
    if bias_C is not None:
        out_SC += bias_C
    for tap in taps_of(chunks, len(weight_WC), len(x_SC), x_SC.device):
        out_SC.addcmul_(_earlier(x_SC, tap), weight_WC[-1 - tap.before])
    covered = _covered(chunks, len(weight_WC), x_SC)
    return (out_SC if covered is None else out_SC.masked_fill_(~covered, 0)).to(x_SC.dtype)


def convolve_backward(grad_SC: Tensor, x_SC: Tensor, weight_CW: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels.convolve_backward`."""
    dtype, covered = _wide(x_SC), _covered(chunks, weight_CW.shape[1], x_SC)
    grad_SC = grad_SC.to(dtype) if covered is None else grad_SC.to(dtype).masked_fill(~covered, 0)
    weight_WC = weight_CW.to(dtype).t()
    dx_SC, dweight_CW = torch.zeros_like(grad_SC), torch.empty_like(weight_CW, dtype=dtype)
    for tap in taps_of(chunks, len(weight_WC), len(x_SC), x_SC.device):
        place = len(weight_WC) - 1 - tap.before
        dweight_CW[:, place] = (grad_SC * _earlier(x_SC, tap)).sum(0)
        dx_SC.addcmul_(grad_SC.index_select(0, tap.later_S).masked_fill_(tap.is_last_S1, 0), weight_WC[place])
        for these, those in tap.others:
            dx_SC[these] += grad_SC[those] * weight_WC[place]
    return dx_SC.to(x_SC.dtype), dweight_CW.to(weight_CW.dtype), grad_SC.sum(0).to(weight_CW.dtype)


@functools.lru_cache(maxsize=8)
def taps_of(chunks: Chunks, width: int, num_tokens: int, device: torch.device) -> tuple[Tap, ...]:
    """The taps in a row of `num_tokens`, that of a token itself first; made once for all layers of a pass."""
    before = earlier_tokens(chunks, width, num_tokens)
    return tuple(_tap(number, earlier_S, device) for number, earlier_S in enumerate(before))


def earlier_tokens(chunks: Chunks, width: int, num_tokens: int) -> Tensor:
    """[W, S]: the token that stands 0, 1, ... tokens before each on its path, or -1."""
    if num_tokens < chunks.num_tokens:
        raise ValueError(f"a row of {num_tokens} tokens has pieces up to token {chunks.num_tokens}")
    earlier_WS = torch.full((width, num_tokens), -1)
    ends: list[list[int]] = []  # of each piece, the last tokens of its path
    for piece in chunks.pieces:
        path = [] if piece.parent == ROOT else ends[piece.parent]
        for before in range(width):
            taken = path[len(path) - before :] if before <= len(path) else [-1] * (before - len(path)) + path
            own = torch.arange(piece.start, piece.stop)
            joined = torch.cat((torch.tensor(taken, dtype=torch.long), own))
            earlier_WS[before, piece.start : piece.stop] = joined[: len(own)]
        tail = [*path, *range(max(piece.start, piece.stop - width), piece.stop)]
        ends.append(tail[max(0, len(tail) - width + 1) :])
    return earlier_WS


def _tap(before: int, earlier_S: Tensor, device: torch.device) -> Tap:
    later_S = torch.full_like(earlier_S, -1)
    rest_S = (earlier_S >= 0).nonzero().squeeze(1)
    rounds: list[tuple[Tensor, Tensor]] = []
    while len(rest_S):
        earlier, first = earlier_S[rest_S], torch.full_like(earlier_S, len(earlier_S))
        first.scatter_reduce_(0, earlier, rest_S, "amin")
        is_first = first[earlier] == rest_S
        rounds.append((earlier[is_first], rest_S[is_first]))
        rest_S = rest_S[~is_first]
    for these, those in rounds[:1]:
        later_S[these] = those
    pair = ((index.clamp(min=0).to(device), (index < 0)[:, None].to(device)) for index in (earlier_S, later_S))
    others = tuple((these.to(device), those.to(device)) for these, those in rounds[1:])
    return Tap(before, *next(pair), *next(pair), others)


def _earlier(x_SC: Tensor, tap: Tap) -> Tensor:
    return x_SC.index_select(0, tap.earlier_S).to(_wide(x_SC)).masked_fill_(tap.is_missing_S1, 0)


def _covered(chunks: Chunks, width: int, x_SC: Tensor) -> Tensor | None:
    """[S, 1], which tokens are in a piece; None where all are."""
    if chunks.covers_all and chunks.num_tokens == len(x_SC):
        return None
    return ~taps_of(chunks, width, len(x_SC), x_SC.device)[0].is_missing_S1


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32

"""Recurrences as they are defined, one token after another in float64, and forests of pieces to go through."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

Pieces = Sequence[tuple[int, int, int]]
Mamba2 = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # x, dt, A, B, C and D

# whole pairs, pieces of one token, none or a chunk's end, a path of many pieces, tokens in no piece
FORESTS: dict[str, Pieces] = {
    "pair": [(0, 7, -1), (7, 12, 0), (12, 21, 0)],
    "single tokens": [(0, 1, -1), (1, 2, 0), (2, 3, 0), (3, 4, -1)],
    "empty pieces": [(0, 0, -1), (0, 5, 0), (5, 9, 0), (9, 12, -1), (12, 12, 3), (12, 15, 4), (15, 15, 4)],
    "no parents": [(0, 3, -1), (3, 10, -1)],
    "a path": [(0, 2, -1), (2, 4, 0), (4, 5, 1), (5, 6, 2), (6, 14, 3), (14, 15, 2)],
    "out of order": [(9, 14, -1), (2, 6, 0), (14, 20, 0), (0, 2, 1)],
    "gaps": [(2, 6, -1), (8, 11, 0), (11, 13, 0)],
    "nothing": [],
}


def random_forest(seed: int) -> Pieces:
    """Up to nine pieces of up to 40 tokens, laid out at random, some of them empty, with gaps between some."""
    draw = random.Random(seed)
    lengths = [draw.choice((0, 1, 2, draw.randrange(3, 40))) for _ in range(draw.randrange(1, 10))]
    places = list(range(len(lengths)))
    draw.shuffle(places)
    starts, start = {}, 0
    for place in places:
        start += draw.choice((0, 0, 3))
        starts[place] = start
        start += lengths[place]
    return [(starts[i], starts[i] + lengths[i], draw.randrange(-1, i)) for i in range(len(lengths))]


def num_tokens(pieces: Pieces) -> int:
    """As many as the pieces need, and two in no piece behind them."""
    return max((stop for _, stop, _ in pieces), default=0) + 2


def mamba2_token_by_token(
    x_SND: Tensor, dt_SN: Tensor, A_N: Tensor, B_SGK: Tensor, C_SGK: Tensor, D_N: Tensor, pieces: Pieces
) -> Tensor:
    """h = exp(dt * A) h + dt * B x^T, y = h^T C + D x."""
    num_heads, num_groups = x_SND.shape[1], B_SGK.shape[1]
    B_SNK, C_SNK = (of.repeat_interleave(num_heads // num_groups, 1) for of in (B_SGK, C_SGK))
    out: list[Tensor] = [torch.zeros_like(x_SND[0])] * len(x_SND)
    ends: list[Tensor] = []
    for start, stop, parent in pieces:
        state_NKD = ends[parent] if parent >= 0 else x_SND.new_zeros(num_heads, B_SGK.shape[2], x_SND.shape[2])
        for t in range(start, stop):
            added = (dt_SN[t, :, None] * B_SNK[t])[:, :, None] * x_SND[t][:, None, :]
            state_NKD = torch.exp(dt_SN[t] * A_N)[:, None, None] * state_NKD + added
            out[t] = (C_SNK[t][:, :, None] * state_NKD).sum(1) + D_N[:, None] * x_SND[t]
        ends.append(state_NKD)
    return torch.stack(out)


def gated_delta_token_by_token(
    q_SGK: Tensor, k_SGK: Tensor, v_SND: Tensor, g_SN: Tensor, beta_SN: Tensor, pieces: Pieces
) -> Tensor:
    """h = exp(g) h, h = h + k (beta (v - h^T k))^T, y = h^T q."""
    num_heads, num_groups = v_SND.shape[1], k_SGK.shape[1]
    q_SNK, k_SNK = (of.repeat_interleave(num_heads // num_groups, 1) for of in (q_SGK, k_SGK))
    out: list[Tensor] = [torch.zeros_like(v_SND[0])] * len(v_SND)
    ends: list[Tensor] = []
    for start, stop, parent in pieces:
        state_NKD = ends[parent] if parent >= 0 else v_SND.new_zeros(num_heads, k_SGK.shape[2], v_SND.shape[2])
        for t in range(start, stop):
            state_NKD = torch.exp(g_SN[t])[:, None, None] * state_NKD
            delta_ND = beta_SN[t][:, None] * (v_SND[t] - (state_NKD * k_SNK[t][:, :, None]).sum(1))
            state_NKD = state_NKD + k_SNK[t][:, :, None] * delta_ND[:, None, :]
            out[t] = (state_NKD * q_SNK[t][:, :, None]).sum(1)
        ends.append(state_NKD)
    return torch.stack(out)


def convolution_token_by_token(x_SC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, pieces: Pieces) -> Tensor:
    """Each piece behind its whole path."""
    width = weight_CW.shape[1]
    out: list[Tensor] = [torch.zeros_like(x_SC[0])] * len(x_SC)
    paths: list[list[int]] = []
    for start, stop, parent in pieces:
        path = list(paths[parent]) if parent >= 0 else []
        for t in range(start, stop):
            path.append(t)
            taken = path[-width:]
            terms = [weight_CW[:, width - len(taken) + place] * x_SC[token] for place, token in enumerate(taken)]
            out[t] = sum(terms, bias_C if bias_C is not None else torch.zeros_like(x_SC[0]))
        paths.append(path)
    return torch.stack(out)


def mamba2_inputs(num: int, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> Mamba2:
    """Inputs of `num` tokens, as large as a model's; some steps are zero, some forget all."""
    heads, size, groups, state = shape
    x, B, C = (torch.randn(num, many, of).to(dtype) for many, of in ((heads, size), (groups, state), (groups, state)))
    dt = torch.nn.functional.softplus(torch.randn(num, heads) - 1)
    dt[torch.rand(num, heads) < 0.1] = 0
    dt[torch.rand(num, heads) < 0.02] = 30
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    A, D = -torch.empty(heads).uniform_(0.5, 16), torch.randn(heads)
    of = (x.requires_grad_() for x in (x, dt.to(wide), A.to(wide), B, C, D.to(wide)))
    return next(of), next(of), next(of), next(of), next(of), next(of)


def gated_delta_inputs(num: int, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, g and beta of `num` tokens, for (heads, value size, groups, key size); some forget all, some write none."""
    heads, size, groups, state = shape
    q, k = (torch.nn.functional.normalize(torch.randn(num, groups, state), dim=-1) for _ in range(2))
    v, g, beta = torch.randn(num, heads, size), -torch.rand(num, heads) * 2, torch.rand(num, heads)
    g[torch.rand(num, heads) < 0.05] = -300
    beta[torch.rand(num, heads) < 0.1] = 0
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    narrow = [(q * state**-0.5).to(dtype), k.to(dtype), v.to(dtype)]
    return [of.requires_grad_() for of in (*narrow, g.to(wide), beta.to(wide))]


@contextlib.contextmanager
def spoiled_scratch(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Iterator[None]:
    """In the block, scratch memory that `modules` ask for is of nan, and written to; a guard behind it must not be."""
    guard, made = 64, list[Tensor]()

    def spoiled(_: str, size: int) -> Tensor:
        made.append(torch.full((size + guard,), torch.nan))
        return made[-1][:size]

    with monkeypatch.context() as patched:
        for module in modules:
            patched.setattr(module, "scratch", spoiled)
        yield
    assert made
    assert all(x[-guard:].isnan().all() and not x[:-guard].isnan().all() for x in made)

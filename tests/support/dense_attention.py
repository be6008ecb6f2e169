"""Attention over packed pairs by a dense mask, written out from the rule: what every backend is held against."""

from __future__ import annotations

from typing import Any

import torch

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.torch_ops.block_plan import BLOCK, SHORT
from nemotron_dpo.policy.rows import Cut, PackedRow
from support.policy_rows import packed

LENGTHS = [((5, 3, 4),), ((1, 1, 1),), ((9, 1, 6), (2, 7, 1), (4, 4, 4))]
LONG = ((3, BLOCK, SHORT), (BLOCK + 5, 2, 2 * BLOCK + 1))  # queries of more than one block, whole and not
EDGE = ((SHORT - 2, 1, 1), (SHORT - 2, 1, 2), (1, SHORT - 2, 1))  # as many tokens as are taken at once, and one more
# a window that is within a block, that ends at its edge, that is longer than a short pair and within a long one
SCORES = [
    *(Scores(0.25, window) for window in (1, 2, 7, 32, BLOCK, SHORT + 3)),
    Scores(0.5, softcap=2.0),
    Scores(0.5, 33, 2.0),
]
CASES = [LENGTHS[2], LONG, EDGE]


def visible_by_the_rule(row: PackedRow, window: int | None = None) -> torch.Tensor:
    mask = torch.zeros(row.num_tokens, row.num_tokens, dtype=torch.bool)
    for s in row.segments:
        for path in ([*range(s.prompt, s.rejected)], [*range(s.prompt, s.chosen), *range(s.rejected, s.end)]):
            behind = torch.arange(len(path))[:, None] - torch.arange(len(path))
            tokens = torch.tensor(path)
            mask[tokens[:, None], tokens] |= (behind >= 0) & (behind < (window or len(path)))
    return mask


def dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: PackedRow, scores: Scores, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax over an explicit [S, S] mask: same path, not later, within the window; and over the sink, which has no value."""
    mask = visible_by_the_rule(row, scores.window)
    heads, groups = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(heads // groups, dim=2) for x in (k, v))
    products = torch.einsum("ibhd,jbhd->hij", q, k) * scores.scale
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    products = products.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        products = torch.cat((products, sinks[:, None, None].expand(-1, len(mask), 1)), -1)
    weights = products.softmax(-1)[..., : len(mask)]
    return torch.einsum("hij,jbhd->ibhd", weights, v).flatten(2)


def check_scores(attend: Any, lengths: tuple, scores: Scores, has_sinks: bool, heads: tuple[int, int, int]) -> None:
    """Values and all gradients, the sinks' among them, in float32; and one context-parallel rank of two."""
    row, (num_heads, num_groups, size) = packed(*lengths), heads
    torch.manual_seed(0)
    q, k, v = (torch.randn(row.num_tokens, 1, n, size, requires_grad=True) for n in (num_heads, num_groups, num_groups))
    sinks = torch.randn(num_heads, requires_grad=True) if has_sinks else None
    inputs, slope = [q, k, v, *([] if sinks is None else [sinks])], torch.randn(row.num_tokens, 1, num_heads * size)
    got, expected = attend(q, k, v, row, scores, sinks), dense(q, k, v, row, scores, sinks)
    pairs = [(got, expected), *zip(*(torch.autograd.grad(x, inputs, slope) for x in (got, expected)), strict=True)]
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= 3e-6 * theirs.norm()
    share = packed(*lengths, cut=Cut(1, 2, tokens_together=2))
    assert share.share is not None
    q, k, v = (torch.cat((x.detach(), torch.zeros(share.num_tokens - len(x), *x.shape[1:]))) for x in (q, k, v))
    mine = share.share.tokens_L
    held = attend(q[mine], k, v, share, scores, sinks)
    assert torch.allclose(held, dense(q, k, v, share, scores, sinks)[mine], atol=1e-5)

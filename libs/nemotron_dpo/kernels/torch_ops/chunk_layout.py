"""How a row's chunks lie in a batch, each padded to as many tokens, and how states go from one to the next, as indices.

Tokens are gathered into the batch and out of it, never scattered: each is in one place of it. In the batch come first the
inner chunks, which have children, by their depth; then the leaves. So those with a parent lie behind one another as well.

Legend: S packed tokens, M chunks, Q tokens of a chunk, W chunks with a parent, C the most children of a chunk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import ROOT, Chunks


@dataclass(frozen=True)
class Level:
    """Inner chunks `start` to `stop` of the batch, all of one depth; the children of each by their place in W, W for none."""

    start: int
    stop: int
    children_LC: Tensor


@dataclass(frozen=True, eq=False)
class ChunkLayout:
    """The batch on one device.

    tokens_MQ: the token in each place; behind a chunk's last token it is repeated. is_token_MQ: where it is not.
    places_S: where each token is in M * Q; zero where it is in no chunk, which is_covered_S1 tells (None: all are in one).
    num_inner: the chunks with children. followers: those with a parent. parents_W: the parents of these.
    """

    tokens_MQ: Tensor
    is_token_MQ: Tensor
    places_S: Tensor
    is_covered_S1: Tensor | None
    num_inner: int
    followers: slice
    parents_W: Tensor
    levels: tuple[Level, ...]

    def gather(self, x: Tensor) -> Tensor:
        """Of x [S, ...] the batch [M, Q, ...]."""
        return x.index_select(0, self.tokens_MQ.flatten()).view(*self.tokens_MQ.shape, *x.shape[1:])

    def spread(self, x: Tensor) -> Tensor:
        """Of a batch [M, Q, ...] the tokens [S, ...]; zero for those in no chunk."""
        if not self.tokens_MQ.numel():
            return x.new_zeros(len(self.places_S), *x.shape[2:])
        out = x.flatten(0, 1).index_select(0, self.places_S).flatten(1)
        if self.is_covered_S1 is not None:
            out = torch.where(self.is_covered_S1, out, out.new_zeros(()))
        return out.view(-1, *x.shape[2:])


@functools.lru_cache(maxsize=8)
def layout_of(chunks: Chunks, num_tokens: int, device: torch.device) -> ChunkLayout:
    """The layout in a row of `num_tokens`; made once for all layers of a pass."""
    if num_tokens < chunks.num_tokens:
        raise ValueError(f"a row of {num_tokens} tokens has pieces up to token {chunks.num_tokens}")
    order = _order(chunks)
    starts, counts = (torch.tensor([of[chunk] for chunk in order], dtype=torch.long) for of in (chunks.starts, chunks.counts))
    within_Q = torch.arange(max(chunks.counts, default=1))
    is_token_MQ = within_Q < counts[:, None]
    tokens_MQ = starts[:, None] + torch.minimum(within_Q, counts[:, None] - 1)
    places_S = torch.zeros(num_tokens, dtype=torch.long)
    is_covered_S = torch.zeros(num_tokens, dtype=torch.bool)
    places_S[tokens_MQ[is_token_MQ]] = is_token_MQ.flatten().nonzero().squeeze(1)
    is_covered_S[tokens_MQ[is_token_MQ]] = True
    covered = None if is_covered_S.all() else is_covered_S[:, None].to(device)
    tables = (tokens_MQ.to(device), is_token_MQ.to(device), places_S.to(device))
    return ChunkLayout(*tables, covered, *_links(chunks, order, device))


def _order(chunks: Chunks) -> list[int]:
    """Inner chunks by depth, then leaves with a parent, then those alone."""

    def rank(chunk: int) -> tuple[bool, int]:
        is_leaf, depth = not chunks.children[chunk], chunks.depths[chunk]
        return is_leaf, (depth == 0) if is_leaf else depth

    return sorted(range(len(chunks.starts)), key=rank)


def _links(chunks: Chunks, order: list[int], device: torch.device) -> tuple[int, slice, Tensor, tuple[Level, ...]]:
    """The fields of a layout from `num_inner` on."""
    places = {chunk: place for place, chunk in enumerate(order)}
    num_inner = sum(map(bool, chunks.children))
    depths = [chunks.depths[chunk] for chunk in order[:num_inner]]
    first = depths.count(0)
    followers = [chunk for chunk in order[first:] if chunks.parents[chunk] != ROOT]
    parents_W = torch.tensor([places[chunks.parents[chunk]] for chunk in followers], dtype=torch.long, device=device)
    levels, start = [], 0
    for depth in range(max(depths, default=-1) + 1):
        stop = start + depths.count(depth)
        of = [[places[child] - first for child in chunks.children[chunk]] for chunk in order[start:stop]]
        most = max(map(len, of))
        padded = [children + [len(followers)] * (most - len(children)) for children in of]
        levels.append(Level(start, stop, torch.tensor(padded, dtype=torch.long, device=device)))
        start = stop
    return num_inner, slice(first, first + len(followers)), parents_W, tuple(levels)

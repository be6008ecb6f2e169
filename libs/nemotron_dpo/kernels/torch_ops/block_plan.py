"""Which queries of a packed row meet which keys, as runs for `block_attention`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.segments import PackedTokens, Segment, causal_parts

SHORT = 192  # tokens of a pair that costs less at once, hidden scores included, than in its parts


@dataclass(frozen=True)
class AttentionRun:
    """Consecutive queries, and the keys they may see: `keys` in order, the last of which are the queries' own.

    hidden: None where a query sees its own key and all keys before it; else the run is one block, and this [queries, keys] is
    added to its scores: -inf where a query must not see a key, 0 elsewhere.
    """

    queries: slice
    keys: tuple[slice, ...]
    hidden: Tensor | None = None


@dataclass(frozen=True, eq=False)  # known by what it is, not by what is in it: so what is prepared for it can be kept
class AttentionPlan:
    """What a row's queries see; every query is in one run."""

    runs: tuple[AttentionRun, ...]


@functools.lru_cache(maxsize=1)
def plan_of(row: PackedTokens) -> AttentionPlan:
    """Queries as places in L and keys as places in S, in the order of L; made once for all layers of a pass."""
    runs, held = [], 0
    for chunk in row.chunks:
        for pair in row.segments:
            for tokens, keys, hidden in _at_once(pair, chunk) or _causally(pair, chunk):
                num_tokens = tokens.stop - tokens.start
                runs.append(AttentionRun(slice(held, held + num_tokens), keys, hidden))
                held += num_tokens
    return AttentionPlan(tuple(runs))


_Part = tuple[slice, tuple[slice, ...], Tensor | None]  # of S: queries, the keys they may see, what of them is hidden


def _at_once(pair: Segment, chunk: slice) -> list[_Part]:
    """All queries against all keys of a pair that is short and wholly in `chunk`; else nothing."""
    whole = slice(pair.prompt, pair.end)
    num_tokens = whole.stop - whole.start
    if num_tokens > SHORT or whole.start < chunk.start or whole.stop > chunk.stop:
        return []
    hidden = torch.full((num_tokens, num_tokens), -torch.inf).triu_(1)
    hidden[pair.rejected - whole.start :, pair.chosen - whole.start : pair.rejected - whole.start] = -torch.inf
    return [(whole, (whole,), hidden)]


def _causally(pair: Segment, chunk: slice) -> Iterator[_Part]:
    return ((tokens, keys, None) for tokens, keys in causal_parts(pair, chunk))

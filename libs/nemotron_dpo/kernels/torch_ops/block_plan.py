"""Which queries of a packed row meet which keys, as runs for `block_attention`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.segments import PackedTokens, Segment, causal_parts, first_of, last_of, num_places

BLOCK = 128  # of queries: large enough for the matrix products, small enough that a block's scores stay in a core's cache
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


@functools.lru_cache(maxsize=2)  # layers with a window and without take turns
def plan_of(row: PackedTokens, window: int | None = None) -> AttentionPlan:
    """Queries as places in L and keys as places in S, in the order of L; made once for all layers of a pass."""
    runs, held = [], 0
    for chunk in row.chunks:
        for pair in row.segments:
            for tokens, keys, hidden in _at_once(pair, chunk, window) or _causally(pair, chunk, window):
                num_tokens = tokens.stop - tokens.start
                runs.append(AttentionRun(slice(held, held + num_tokens), keys, hidden))
                held += num_tokens
    return AttentionPlan(tuple(runs))


_Part = tuple[slice, tuple[slice, ...], Tensor | None]  # of S: queries, the keys they may see, what of them is hidden


def _at_once(pair: Segment, chunk: slice, window: int | None) -> list[_Part]:
    """All queries against all keys of a pair that is short and wholly in `chunk`; else nothing."""
    whole = slice(pair.prompt, pair.end)
    num_tokens = whole.stop - whole.start
    if num_tokens > SHORT or whole.start < chunk.start or whole.stop > chunk.stop:
        return []
    hidden = torch.full((num_tokens, num_tokens), -torch.inf).triu_(1)
    rejected, num_chosen = pair.rejected - whole.start, pair.rejected - pair.chosen
    hidden[rejected:, rejected - num_chosen : rejected] = -torch.inf
    if window is not None:
        along = torch.arange(num_tokens)
        along[rejected:] -= num_chosen
        hidden[along[:, None] - along >= window] = -torch.inf
    return [(whole, (whole,), hidden)]


def _causally(pair: Segment, chunk: slice, window: int | None) -> Iterator[_Part]:
    for tokens, keys in causal_parts(pair, chunk):
        if window is None or num_places(keys) <= window:
            yield tokens, keys, None
        else:
            yield from _by_window(tokens, keys, window)


def _by_window(tokens: slice, keys: tuple[slice, ...], window: int) -> Iterator[_Part]:
    """A run of causal queries in blocks, each with those keys alone that one of its queries sees."""
    later = num_places(keys) - tokens.stop  # keys up to a query, less its place
    for start in range(tokens.start, tokens.stop, BLOCK):
        stop = min(start + BLOCK, tokens.stop)
        seen = last_of(first_of(keys, stop + later), stop - start + window - 1)
        yield slice(start, stop), seen, _band(stop - start, num_places(seen), window)


@functools.lru_cache(maxsize=64)
def _band(num_queries: int, num_keys: int, window: int) -> Tensor:
    """-inf where one of the queries, the last of the keys, must not see a key: a later one, or one before its window."""
    behind = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    return torch.zeros(num_queries, num_keys).masked_fill_((behind < 0) | (behind >= window), -torch.inf)

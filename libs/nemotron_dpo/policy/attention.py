"""Attention over packed pairs: both responses of a pair see its one prompt and themselves, never each other.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), N query
heads, G key/value heads, D head size.
The rule is implemented by runs of causal queries, which needs no mask over the whole row: in kernels of ours or else in
torch's products on a CPU, by torch's FlashAttention on a GPU. Tests hold them equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nemotron_dpo.policy.flash_attention import flash_attention, flash_serves, run_attention
from nemotron_dpo.policy.kernels import attention as kernels
from nemotron_dpo.policy.rows import PackedRow, Segment, causal_parts, causal_runs
from nemotron_dpo.policy.segment_attention import Plan, Run, attend

SHORT = 192  # tokens of a pair that costs less at once, hidden scores included, than in its parts


class PairAttention(nn.Module):
    """megatron-core's `core_attention` for packed pairs; takes the constructor arguments its layer spec passes."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> Tensor:
        """query [L, 1, N, D], key and value [L, 1, G, D] -> [L, 1, N * D]."""
        attend = _implementation(query)
        key, value = (_whole(x, packed_seq_params) for x in (key, value.contiguous()))  # a view keeps all it is cut from
        return attend(query, key, value, packed_seq_params, self.scale)


def _implementation(query: Tensor) -> Callable[[Tensor, Tensor, Tensor, PackedRow, float], Tensor]:
    if query.is_cuda:
        return flash_attention if flash_serves(query) else run_attention
    return kernel_attention if kernels.serves(query) else segment_attention


def _whole(held: Tensor, row: PackedRow) -> Tensor:
    """[L, ...] of each context-parallel rank -> [S, ...] on all; the gradient is summed over them and cut again."""
    if row.share is None:
        return held
    from megatron.core.parallel_state import get_context_parallel_group
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(held, group=get_context_parallel_group())[row.share.order_S]


def kernel_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """What `segment_attention` computes, by the compiled kernels."""
    return kernels.attend(query, key, value, _runs(row), scale)


@functools.lru_cache(maxsize=1)
def _runs(row: PackedRow) -> Tensor:
    """The runs of held tokens as the kernels take them; made once for all layers of a pass."""
    runs = []
    for held, tokens, keys in causal_runs(row):
        first, *others = ((part.start, part.stop - part.start) for part in keys)
        then, num_others = others[0] if others else (0, 0)
        runs.append((held, tokens.stop - tokens.start, first[1] + num_others, *first, then))
    return torch.tensor(runs, dtype=torch.int64).view(-1, 6)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """Queries [L, 1, N, D] against keys [S, 1, G, D]: each run of held tokens causally, after what it may see before it."""
    return attend(query, key, value, _plan(row), scale)


@functools.lru_cache(maxsize=1)
def _plan(row: PackedRow) -> Plan:
    """Queries as places in L and keys as places in S, in the order of L; made once for all layers of a pass."""
    runs, held = [], 0
    for chunk in row.chunks:
        for pair in row.segments:
            for tokens, keys, hidden in _at_once(pair, chunk) or _causally(pair, chunk):
                num_tokens = tokens.stop - tokens.start
                runs.append(Run(slice(held, held + num_tokens), keys, hidden))
                held += num_tokens
    return Plan(tuple(runs))


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

"""Attention over packed pairs: both responses of a pair see its one prompt and themselves, never each other.

Legend: S packed tokens, N query heads, G key/value heads, D head size.
Two implementations of the same rule: by segment through scaled_dot_product_attention, which needs no mask over the whole
row (CPU), and FlexAttention with a block mask (GPU). Tests hold them equal.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_dpo.policy.rows import PackedRow


class PairAttention(nn.Module):
    """megatron-core's `core_attention` for packed pairs; takes the constructor arguments its layer spec passes."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> Tensor:
        """query [S, 1, N, D], key and value [S, 1, G, D] -> [S, 1, N * D]."""
        attend = flex_attention if query.is_cuda else segment_attention
        return attend(query, key, value, packed_seq_params, self.scale)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """Causal attention over each pair's prompt | chosen, then of its rejected response over prompt | rejected."""
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [1, heads, S, D]
    parts = []
    for s in row.segments:
        both = slice(s.prompt, s.rejected)
        parts.append(_sdpa(q[:, :, both], k[:, :, both], v[:, :, both], scale))
        k_rejected, v_rejected = (torch.cat([x[:, :, s.prompt : s.chosen], x[:, :, s.rejected : s.end]], dim=2) for x in (k, v))
        parts.append(_sdpa(q[:, :, s.rejected : s.end], k_rejected, v_rejected, scale))
    return torch.cat(parts, dim=2).permute(2, 0, 1, 3).flatten(2)


def flex_attention(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """The same through FlexAttention; compiled on a GPU, eager elsewhere."""
    from torch.nn.attention import flex_attention as flex

    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    run = _compiled_flex() if query.is_cuda else flex.flex_attention
    out = run(q, k, v, block_mask=_block_mask(row), scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.permute(2, 0, 1, 3).flatten(2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention whose queries are the last ones of the keys."""
    grouped = q.shape[1] != k.shape[1]
    if q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as run

    return torch.compile(run, dynamic=True)


@functools.lru_cache(maxsize=1)
def _block_mask(row: PackedRow) -> Any:
    """The block mask of `row`, made once for all layers of a forward pass."""
    from torch.nn.attention.flex_attention import create_block_mask

    num_tokens, where = len(row.input_ids_S), row.input_ids_S.device
    spans = torch.tensor([[s.prompt, s.chosen, s.rejected, s.end] for s in row.segments], device=where)
    pair_S = torch.bucketize(torch.arange(num_tokens, device=where), spans[:, 3].contiguous(), right=True)
    chosen_S, rejected_S = spans[pair_S, 1], spans[pair_S, 2]

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        across = (q >= rejected_S[q]) & (k >= chosen_S[q]) & (k < rejected_S[q])
        return (k <= q) & (pair_S[q] == pair_S[k]) & ~across

    return create_block_mask(visible, None, None, num_tokens, num_tokens, device=str(where))

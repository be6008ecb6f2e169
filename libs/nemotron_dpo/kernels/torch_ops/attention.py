"""Attention by torch's operations: by blocks of queries on a CPU; on a GPU by torch's FlashAttention, or where that does not
serve run by run."""

from __future__ import annotations

from torch import Tensor

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.segments import PackedTokens
from nemotron_dpo.kernels.torch_ops.block_attention import block_attention
from nemotron_dpo.kernels.torch_ops.flash_attention import flash_attention, flash_serves, run_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scores: Scores, sinks_N: Tensor | None = None
) -> Tensor:
    """As `Kernels.attend`."""
    if not query.is_cuda:
        return block_attention(query, key, value, row, scores, sinks_N)
    return (flash_attention if flash_serves(query, scores) else run_attention)(query, key, value, row, scores, sinks_N)

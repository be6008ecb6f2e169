"""megatron-core's core attention over packed pairs, by our kernels.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), N query
heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.policy.rows import PackedRow


class PairAttention(nn.Module):
    """megatron-core's `core_attention` for packed pairs; takes the constructor arguments its layer spec passes."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> Tensor:
        """query [L, 1, N, D], key and value [L, 1, G, D] -> [L, 1, N * D]."""
        query, key, value = (x.contiguous() for x in (query, key, value))  # a view keeps all it is cut from
        key, value = (_whole(x, packed_seq_params) for x in (key, value))
        return kernels().attend(query, key, value, packed_seq_params, self.scale)


def _whole(held: Tensor, row: PackedRow) -> Tensor:
    """[L, ...] of each context-parallel rank -> [S, ...] on all; the gradient is summed over them and cut again."""
    if row.share is None:
        return held
    from megatron.core.parallel_state import get_context_parallel_group
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(held, group=get_context_parallel_group())[row.share.order_S]

"""megatron-core's attention over packed pairs, by our kernels, each layer with positions, window and biases of its own.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), N query
heads, G key/value heads, D head size.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor, nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.policy.rotary import turned
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.sublayers.attention import Attention


class PairSelfAttention(SelfAttention):
    """megatron-core's, by what this layer's attention says in the place of the config that all layers share."""

    def __init__(self, config: TransformerConfig, *args: Any, attention: Attention, **kwargs: Any) -> None:
        own = copy.copy(config)
        for name, value in {**attention.config(), "add_bias_linear": attention.out_bias}.items():
            setattr(own, name, value)
        super().__init__(own, *args, **kwargs)


class PairAttention(nn.Module):
    """megatron-core's `core_attention` for packed pairs; takes the constructor arguments its layer spec passes."""

    def __init__(self, config: TransformerConfig, attention: Attention, **_: Any) -> None:
        super().__init__()
        if attention.softcap or attention.sinks:
            raise UserError("attention with a soft cap or sinks is not computed yet")
        self.rotary = attention.rotary
        self.scale = 1.0 / math.sqrt(attention.head_size) if attention.scale is None else attention.scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> Tensor:
        """query [L, 1, N, D], key and value [L, 1, G, D] -> [L, 1, N * D]."""
        query, key = (turned(x, packed_seq_params, self.rotary) for x in (query, key))
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

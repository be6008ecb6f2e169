"""megatron-core's attention over packed pairs, by our kernels, each layer with positions, window and biases of its own.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), N query
heads, G key/value heads, D head size.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.policy.rotary import grown, turned
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
        scale = 1.0 / math.sqrt(attention.head_size) if attention.scale is None else attention.scale
        self.rotary, self.scores = attention.rotary, Scores(scale, attention.window, attention.softcap)
        heads = config.num_attention_heads // config.tensor_model_parallel_size
        self.softmax_offset = nn.Parameter(torch.zeros(heads, dtype=config.params_dtype)) if attention.sinks else None
        if self.softmax_offset is not None:
            set_tensor_model_parallel_attributes(self.softmax_offset, is_parallel=True, dim=0, stride=1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> Tensor:
        """query [L, 1, N, D], key and value [L, 1, G, D] -> [L, 1, N * D]."""
        query, key = (turned(x, packed_seq_params, self.rotary) for x in (query, key))
        query = grown(query, packed_seq_params, self.rotary)
        query, key, value = (x.contiguous() for x in (query, key, value))  # a view keeps all it is cut from
        key, value = (_whole(x, packed_seq_params) for x in (key, value))
        return kernels().attend(query, key, value, packed_seq_params, self.scores, self.softmax_offset)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict[str, Any]:
        """The sinks under megatron-core's name for them, divided over tensor-parallel ranks."""
        tensors = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(tensors, prefix, {"softmax_offset": 0}, sharded_offsets)


def _whole(held: Tensor, row: PackedRow) -> Tensor:
    """[L, ...] of each context-parallel rank -> [S, ...] on all; the gradient is summed over them and cut again."""
    if row.share is None:
        return held
    from megatron.core.parallel_state import get_context_parallel_group
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(held, group=get_context_parallel_group())[row.share.order_S]

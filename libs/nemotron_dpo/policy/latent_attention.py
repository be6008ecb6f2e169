"""Multi-head latent attention over packed pairs, by our kernels; its parameters and their names are megatron-core's.

megatron-core's own MLASelfAttention makes its positions of places in a row, which here are not those of tokens on their path.

Legend: S packed tokens of this context-parallel rank, N heads of this tensor-parallel rank, D the wider of a key and a value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import MegatronModule, TransformerConfig
from torch import Tensor

from nemotron_dpo.policy.attention import PairAttention
from nemotron_dpo.policy.norm import Norm
from nemotron_dpo.policy.rotary import turned
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention


class PairLatentAttention(MegatronModule):
    """The attention of one layer, its heads divided over tensor-parallel ranks; `kind` has the sizes of the whole.

    Ranks divide the small vectors too while they are made, and each has them whole then.
    """

    def __init__(self, config: TransformerConfig, kind: LatentAttention, pg_collection: Any, **_: Any) -> None:
        super().__init__(config)
        self.kind, self.tp_group = kind, pg_collection.tp
        hidden, heads = config.hidden_size, kind.num_heads
        if kind.query_rank is None:
            self.linear_q_proj = self._column(hidden, heads * kind.key_size)
        else:
            self.linear_q_down_proj = self._column(hidden, kind.query_rank)
            self.q_layernorm = Norm(config, kind.query_rank, kind.eps)
            self.linear_q_up_proj = self._column(kind.query_rank, heads * kind.key_size)
        self.linear_kv_down_proj = self._column(hidden, kind.latent_rank + kind.rotary_size)
        self.kv_layernorm = Norm(config, kind.latent_rank, kind.eps)
        self.linear_kv_up_proj = self._column(kind.latent_rank, heads * (kind.plain_size + kind.value_size))
        widest = max(kind.key_size, kind.value_size)
        self.core_attention = PairAttention(config, Attention(heads, heads, widest, rotary=None, scale=kind.scale))
        self.linear_proj = RowParallelLinear(
            heads * kind.value_size, hidden, input_is_parallel=True, skip_bias_add=True, **self._of_both()
        )

    def _of_both(self) -> dict[str, Any]:
        return {"config": self.config, "init_method": self.config.init_method, "bias": False, "tp_group": self.tp_group}

    def _column(self, inputs: int, outputs: int) -> ColumnParallelLinear:
        return ColumnParallelLinear(inputs, outputs, gather_output=False, **self._of_both())

    def forward(self, hidden: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> tuple[Tensor, Tensor | None]:
        """Hidden states [S, 1, H] -> (the same, no bias); under sequence parallelism this rank's part of S."""
        key, value = self._keys_and_values(hidden, packed_seq_params)
        mixed = self.core_attention(
            self._queries(hidden, packed_seq_params), key, value, packed_seq_params=packed_seq_params
        ).unflatten(2, (key.shape[2], -1))
        return self.linear_proj(mixed[..., : self.kind.value_size].flatten(2))

    def _queries(self, hidden: Tensor, row: PackedRow) -> Tensor:
        """[S, 1, N, D]."""
        kind = self.kind
        if kind.query_rank is None:
            query = self.linear_q_proj(hidden)[0]
        else:
            small = self._shared(self._whole(self.linear_q_down_proj(hidden)[0]))
            query = self.linear_q_up_proj(self.q_layernorm(small))[0]
        plain, rotary = query.unflatten(2, (-1, kind.key_size)).split([kind.plain_size, kind.rotary_size], 3)
        return self._widened(torch.cat((plain, self._turned(rotary, row)), 3))

    def _keys_and_values(self, hidden: Tensor, row: PackedRow) -> tuple[Tensor, Tensor]:
        """[S, 1, N, D] each."""
        kind = self.kind
        small, rotary = self._whole(self.linear_kv_down_proj(hidden)[0]).split([kind.latent_rank, kind.rotary_size], 2)
        both = self.linear_kv_up_proj(self.kv_layernorm(self._shared(small)))[0]
        plain, value = both.unflatten(2, (-1, kind.plain_size + kind.value_size)).split([kind.plain_size, kind.value_size], 3)
        # each rank turns it for its own heads alone, and so their gradients are summed
        turned_key = self._turned(copy_to_tensor_model_parallel_region(rotary, self.tp_group)[:, :, None], row)
        return self._widened(torch.cat((plain, turned_key.expand(-1, -1, plain.shape[2], -1)), 3)), self._widened(value)

    def _turned(self, x: Tensor, row: PackedRow) -> Tensor:
        """Channels [S, 1, N, T] with their positions, in another order: our kernel turns a channel with that T / 2 on."""
        return turned(x.unflatten(3, (-1, 2)).transpose(3, 4).flatten(3), row, self.kind.rotary)

    def _whole(self, part: Tensor) -> Tensor:
        """A small vector of which this rank has some channels -> all of them, of all tokens."""
        return gather_from_tensor_model_parallel_region(part, self.tp_group)

    def _shared(self, whole: Tensor) -> Tensor:
        """The same, of those tokens that this rank has between the divided parts of a layer."""
        return scatter_to_sequence_parallel_region(whole, self.tp_group) if self.config.sequence_parallel else whole

    def _widened(self, x: Tensor) -> Tensor:
        """Zeros behind what is narrower than the widest: they add nothing to a score, and are cut off values again."""
        return F.pad(x, (0, max(self.kind.key_size, self.kind.value_size) - x.shape[3]))

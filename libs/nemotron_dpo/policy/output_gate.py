"""Attention with an output gate, as megatron-core has it, where ranks that share a group of heads take each its own gates."""

from __future__ import annotations

from typing import Any

from megatron.core.parallel_state import get_tensor_model_parallel_rank

from nemotron_dpo.policy.attention import PairSelfAttention


class GatedSelfAttention(PairSelfAttention):
    """megatron-core's, which cuts queries to those of this rank but (in 0.16) not their gates.

    Legend: L tokens, N query heads of this rank, G its key/value heads, D head size.
    """

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """Queries and gates [L, 1, N, D], keys and values [L, 1, G, D]: (query, key, value, gate)."""
        parts: Any = super().get_query_key_value_tensors(*args, **kwargs)
        query, key, value, gate = parts
        heads, of_group = query.shape[2], gate.shape[2]
        if heads < of_group:
            place = get_tensor_model_parallel_rank() % (of_group // heads)
            gate = gate[:, :, place * heads : (place + 1) * heads]
        return query, key, value, gate

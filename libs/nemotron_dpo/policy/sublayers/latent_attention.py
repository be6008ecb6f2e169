"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are made of one small vector a token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemotron_dpo.policy.sublayers.rotary import Rotary, Yarn
from nemotron_dpo.policy.sublayers.sublayer import (
    FLOAT_BYTES,
    Kept,
    Linear,
    PairTokens,
    Parameters,
    entering_bytes,
    norm_parameters,
)

if TYPE_CHECKING:
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.layout import Layout

# products a channel where a query and a key meet, 2 FLOPs each: of queries with keys, of probabilities with values
_FORWARD, _BACKWARD = (1, 1), (3, 2)


@dataclass(frozen=True)
class LatentAttention:
    """`num_heads` heads; a query and a key have `plain_size` channels without positions and `rotary_size` that turn.

    The latter are of one key for all heads. Keys' plain channels and values (`value_size`) are made of a vector of
    `latent_rank`, queries of one of `query_rank`; with None of the stream itself. A channel turns with its neighbour. `eps` is
    that of the norms of both vectors.
    """

    num_heads: int
    query_rank: int | None
    latent_rank: int
    plain_size: int
    rotary_size: int
    value_size: int
    rotary: Rotary
    eps: float = 1e-6

    module = "core_attn"  # whose scores are not kept as it is

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with."""
        query = ("linear_q_proj",) if self.query_rank is None else ("linear_q_down_proj", "q_layernorm", "linear_q_up_proj")
        names = (*query, "linear_kv_down_proj", "kv_layernorm", "linear_kv_up_proj", "linear_proj")
        return "input_layernorm.", *(f"self_attention.{name}." for name in names)

    @property
    def key_size(self) -> int:
        """Channels of a key."""
        return self.plain_size + self.rotary_size

    @property
    def scale(self) -> float:
        """Of the scores. YaRN's factor for all channels enters it, as no cosine reaches those without positions."""
        scaling, growth = self.rotary.scaling, 1.0
        if isinstance(scaling, Yarn) and scaling.mscale_all_dim and scaling.factor > 1:
            growth = 0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1.0
        return growth * growth / math.sqrt(self.key_size)

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        hidden, heads, rank = architecture.hidden_size, self.num_heads, self.query_rank
        queries = heads * self.key_size
        named = {"linear_q_proj": (hidden, queries)}
        if rank is not None:
            named = {"linear_q_down_proj": (hidden, rank), "linear_q_up_proj": (rank, queries)}
        named |= {
            "linear_kv_down_proj": (hidden, self.latent_rank + self.rotary_size),
            "linear_kv_up_proj": (self.latent_rank, heads * (self.plain_size + self.value_size)),
            "linear_proj": (heads * self.value_size, hidden),
        }
        return tuple(Linear(f"self_attention.{name}", *sizes) for name, sizes in named.items())

    def parameters(self, architecture: Architecture) -> Parameters:
        norms = norm_parameters(architecture) + (self.query_rank or 0) + self.latent_rank
        return Parameters(split=self.weights_met(architecture), whole=norms)

    def weights_met(self, architecture: Architecture) -> int:
        return sum(linear.size for linear in self.linears(architecture))

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        forward, backward = (
            2 * self.num_heads * (keys * self.key_size + values * self.value_size) for keys, values in (_FORWARD, _BACKWARD)
        )
        return forward * pair.meetings(), backward * pair.meetings()

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """Both small vectors and their norms; queries, keys, values and the result, as wide as keys; a divisor a head."""
        small = 2 * (self.query_rank or 0) + 2 * self.latent_rank + self.rotary_size
        heads = self.num_heads / layout.tensor
        own = width * (small + 4 * heads * self._widest) + FLOAT_BYTES * heads
        return Kept(entering_bytes(architecture, layout, width), own)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        return (6 * FLOAT_BYTES + 4 * width) * self.num_heads * self._widest / layout.tensor

    @property
    def _widest(self) -> int:
        return max(self.key_size, self.value_size)

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "attention heads", self.num_heads, layout.tensor
        yield "channels of latent queries", self.query_rank or 0, layout.tensor
        yield "channels of latent keys and values", self.latent_rank + self.rotary_size, layout.tensor

    def config(self) -> dict[str, Any]:
        return {"num_attention_heads": self.num_heads, "num_query_groups": self.num_heads, "kv_channels": self.key_size}

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Transformer Engine fuses the norms of the small vectors into what is behind them, and so checkpoints have it."""
        from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.latent_attention import PairLatentAttention
        from nemotron_dpo.policy.norm import Norm

        fields = {
            "input_layernorm": Norm,
            "self_attention": ModuleSpec(PairLatentAttention, params={"kind": self}),
            "self_attn_bda": get_bias_dropout_add,
        }
        return fields, {f"self_attention.{x}_layernorm.": f"self_attention.linear_{x}_up_proj.layer_norm_" for x in ("q", "kv")}

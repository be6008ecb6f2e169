"""Self-attention: grouped queries, rotary positions, causal over the prompt and one response."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.rotary import Rotary
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

# FLOPs a channel of a head where a query and a key meet. Backward computes the scores again, then the gradients of values,
# probabilities, queries and keys
_FORWARD, _BACKWARD = 4, 10


@dataclass(frozen=True)
class Attention:
    """`num_heads` query heads in `num_groups` groups that share a key and a value head, all of `head_size` channels.

    `rotary` None has no positions: what is before, it tells by the causal order alone. A query sees itself and `window` - 1
    tokens before it on its own path, None all; the path of a rejected response is the prompt and that response. `scale` is that
    of the scores, None head_size ** -0.5; scores are bounded to `softcap` * tanh(score / softcap). `sinks` are learned scores,
    one a head, of a key without a value. `out_bias` is of a sublayer that has `qkv_bias` as well.
    """

    num_heads: int
    num_groups: int
    head_size: int
    rotary: Rotary | None
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    out_bias: bool = False

    prefixes = ("input_layernorm.", "self_attention.")
    module = "core_attn"  # whose scores are not kept as it is

    @property
    def stored(self) -> Attention:
        """What its parameters depend on: layers that are alike in this are stored alike, whatever they compute."""
        return replace(self, rotary=None, window=None, softcap=None, scale=None)

    @property
    def channels(self) -> int:
        """Channels of all query heads."""
        return self.num_heads * self.head_size

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        hidden, keys = architecture.hidden_size, self.num_groups * self.head_size
        return (
            Linear("self_attention.linear_qkv", hidden, self.channels + 2 * keys),
            Linear("self_attention.linear_proj", self.channels, hidden),
        )

    def parameters(self, architecture: Architecture) -> Parameters:
        qkv, proj = self.linears(architecture)
        small = (qkv.outputs if self.qkv_bias else 0) + (2 * self.head_size if self.qk_norm else 0)
        small += (proj.outputs if self.out_bias else 0) + (self.num_heads if self.sinks else 0)
        return Parameters(split=qkv.size + proj.size, whole=norm_parameters(architecture) + small)

    def weights_met(self, architecture: Architecture) -> int:
        return sum(linear.size for linear in self.linears(architecture))

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        meetings = pair.meetings(self.window)
        return _FORWARD * self.channels * meetings, _BACKWARD * self.channels * meetings

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """Queries and keys (rotated), values, and the result; with norms queries and keys before them; a divisor a head."""
        heads, groups = self.num_heads, self.num_groups
        normed = heads + groups if self.qk_norm else 0
        elements = (2 * heads + 2 * groups + normed) * self.head_size
        own = (width * elements + FLOAT_BYTES * heads) / layout.tensor
        return Kept(entering_bytes(architecture, layout, width), own)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        heads, groups = self.num_heads, self.num_groups
        return (max(6 * groups, 2 * heads) * FLOAT_BYTES + (2 * heads + 2 * groups) * width) * self.head_size / layout.tensor

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "attention heads", self.num_heads, layout.tensor
        if self.num_groups > layout.tensor:
            yield "key/value heads", self.num_groups, layout.tensor
        elif layout.tensor % self.num_groups:
            message = f"{layout.tensor} tensor-parallel ranks do not share the policy's {self.num_groups} key/value heads"
            raise UserError(f"{message} evenly", remedy="change the parallel size")

    def config(self) -> dict[str, Any]:
        return {
            "num_attention_heads": self.num_heads,
            "num_query_groups": self.num_groups,
            "kv_channels": self.head_size,
            "qk_layernorm": self.qk_norm,
            "add_qkv_bias": self.qkv_bias,
        }

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.attention import PairAttention, PairSelfAttention
        from nemotron_dpo.policy.norm import Norm

        parts: Any = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=self.qk_norm).submodules
        attention = parts.self_attention.submodules
        attention.core_attention = ModuleSpec(PairAttention, params={"attention": self})
        if self.qk_norm:
            attention.q_layernorm = attention.k_layernorm = Norm
        parts.self_attention.module = PairSelfAttention
        parts.self_attention.params["attention"] = self
        fields = {
            "input_layernorm": Norm,
            "self_attention": parts.self_attention,
            "self_attn_bda": parts.self_attn_bda,
        }
        return fields, {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}

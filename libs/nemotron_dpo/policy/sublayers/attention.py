"""Self-attention: grouped queries, rotary positions, causal over the prompt and one response."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.rotary import LongRope, Rotary
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
    one a head, of a key without a value. `out_bias` is of a sublayer that has `qkv_bias` as well. `gated` multiplies what each
    head gives by the sigmoid of a gate of its own, channel by channel.
    With `qk_norm` each head of queries and keys is normed; with `qk_norm_over_heads` besides, all heads as one. It reads the
    stream through a norm, or as it is where `norm_before` is False; with `norm_after` it adds the norm of what it computes.
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
    qk_norm_over_heads: bool = False
    norm_before: bool = True
    norm_after: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where positions are scaled by another number of factors than there are frequencies."""
        scaling = self.rotary.scaling if self.rotary else None
        if self.rotary and isinstance(scaling, LongRope):
            wanted = (self.rotary.size(self.head_size) + 1) // 2
            if {len(scaling.short), len(scaling.long)} != {wanted}:
                numbers = f"{len(scaling.short)} and {len(scaling.long)}"
                raise ValueError(f"longrope has lists of {numbers} factors, and a head has {wanted} frequencies")

    module = "core_attn"  # whose scores are not kept as it is

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with: of biases and norms that it lacks, a folder may hold none."""
        names = ["linear_qkv.weight", "linear_proj.weight"]
        names += ["linear_qkv.bias"] if self.qkv_bias else []
        names += ["linear_proj.bias"] if self.out_bias else []
        names += ["q_layernorm.", "k_layernorm."] if self.qk_norm else []
        names += ["core_attention."] if self.sinks else []
        norms = ["input_layernorm."] if self.norm_before else []
        norms += ["self_attn_bda.post_layernorm."] if self.norm_after else []
        return *norms, *(f"self_attention.{name}" for name in names)

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
            Linear("self_attention.linear_qkv", hidden, (2 if self.gated else 1) * self.channels + 2 * keys),
            Linear("self_attention.linear_proj", self.channels, hidden),
        )

    def parameters(self, architecture: Architecture) -> Parameters:
        qkv, proj = self.linears(architecture)
        normed = self.num_heads + self.num_groups if self.qk_norm_over_heads else 2
        small = (qkv.outputs if self.qkv_bias else 0) + (normed * self.head_size if self.qk_norm else 0)
        small += (proj.outputs if self.out_bias else 0) + (self.num_heads if self.sinks else 0)
        norms = norm_parameters(architecture) * (self.norm_before + self.norm_after)
        return Parameters(split=qkv.size + proj.size, whole=norms + small)

    def weights_met(self, architecture: Architecture) -> int:
        return sum(linear.size for linear in self.linears(architecture))

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        meetings = pair.meetings(self.window)
        return _FORWARD * self.channels * meetings, _BACKWARD * self.channels * meetings

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """Queries and keys (rotated), values, and the result; with norms queries and keys before them; a divisor a head.

        With gates these, their sigmoids in float32, and what both make of the result.
        """
        heads, groups = self.num_heads, self.num_groups
        normed = heads + groups if self.qk_norm else 0
        elements = (2 * heads + 2 * groups + normed) * self.head_size
        gates = (2 * width + FLOAT_BYTES) * self.channels if self.gated else 0
        own = (width * elements + gates + FLOAT_BYTES * heads) / layout.tensor
        return Kept(entering_bytes(architecture, layout, width, before=self.norm_before, after=self.norm_after), own)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        heads, groups = self.num_heads, self.num_groups
        return (max(6 * groups, 2 * heads) * FLOAT_BYTES + (2 * heads + 2 * groups) * width) * self.head_size / layout.tensor

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "attention heads", self.num_heads, layout.tensor
        if self.num_groups > layout.tensor:
            yield "key/value heads", self.num_groups, layout.tensor
        elif self.qk_norm_over_heads and self.num_groups < layout.tensor:
            message = f"a norm over all {self.num_groups} key/value heads needs as many tensor-parallel ranks at most"
            raise UserError(message, remedy=f"set policy.megatron_cfg.tensor_model_parallel_size={self.num_groups} or less")
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
            "attention_output_gate": self.gated,
        }

    def _norms_of_heads(self) -> tuple[Any, Any]:
        """What megatron-core is to build as the norms of queries and of keys."""
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.norm import Norm
        from nemotron_dpo.policy.norm_over_heads import NormOverHeads

        if not self.qk_norm_over_heads:
            return Norm, Norm
        queries, keys = (ModuleSpec(NormOverHeads, params={"heads": num}) for num in (self.num_heads, self.num_groups))
        return queries, keys

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.attention import PairAttention, PairSelfAttention
        from nemotron_dpo.policy.norm import Norm
        from nemotron_dpo.policy.output_gate import GatedSelfAttention
        from nemotron_dpo.policy.residual import with_norm

        parts: Any = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=self.qk_norm).submodules
        attention = parts.self_attention.submodules
        attention.core_attention = ModuleSpec(PairAttention, params={"attention": self})
        if self.qk_norm:
            attention.q_layernorm, attention.k_layernorm = self._norms_of_heads()
        parts.self_attention.module = GatedSelfAttention if self.gated else PairSelfAttention
        parts.self_attention.params["attention"] = self
        fields = {
            "self_attention": parts.self_attention,
            "self_attn_bda": with_norm(config) if self.norm_after else parts.self_attn_bda,
        }
        if self.norm_before:
            fields["input_layernorm"] = Norm
        return fields, {
            "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            "self_attn_bda.post_layernorm.": "self_attention.linear_proj.post_layernorm.",
        }

"""The gated delta net (Yang, Kautz and Hatamizadeh, 2024): a recurrence whose tokens overwrite what their key finds in it.

A pair's shared prompt is computed once: the state at its end starts both responses.

Legend of names within the layer, as megatron-core's GatedDeltaNet has them: in_proj gives query, key, value, the gate z, and
beta and alpha, one number a value head; conv1d mixes query, key and value over neighbouring tokens; A_log and dt_bias are one
number a value head; out_norm norms each head before its gate, with one weight for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

CHUNK = 64  # tokens that the recurrence takes together, whatever a file says: it changes no result


@dataclass(frozen=True)
class GatedDelta:
    """`num_value_heads` states of `key_size` x `value_size`, which share `num_key_heads` queries and keys evenly.

    `conv_width` is the tokens that the convolution sees, `eps` that of the norm of each head.
    """

    num_key_heads: int
    num_value_heads: int
    key_size: int
    value_size: int
    conv_width: int = 4
    eps: float = 1e-6

    prefixes = (
        "input_layernorm.",
        *(f"self_attention.{name}" for name in ("in_proj.", "conv1d.", "A_log", "dt_bias", "out_norm.", "out_proj.")),
    )
    module = "gated_delta_net"

    @property
    def keys(self) -> int:
        """Channels of all keys, and of all queries."""
        return self.num_key_heads * self.key_size

    @property
    def channels(self) -> int:
        """Channels of all values."""
        return self.num_value_heads * self.value_size

    @property
    def parts(self) -> dict[str, int]:
        """Rows of what in_proj stacks, in its order. Tensor parallelism divides each, as it does those of the convolution."""
        heads = {"beta": self.num_value_heads, "alpha": self.num_value_heads}
        return {**self.conv_parts, "z": self.channels, **heads}

    @property
    def conv_parts(self) -> dict[str, int]:
        """Channels of what the convolution stacks, in its order."""
        return {"query": self.keys, "key": self.keys, "value": self.channels}

    @property
    def conv_channels(self) -> int:
        """All of them."""
        return sum(self.conv_parts.values())

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        hidden = architecture.hidden_size
        return (
            Linear("self_attention.in_proj", hidden, sum(self.parts.values())),
            Linear("self_attention.out_proj", self.channels, hidden),
        )

    def parameters(self, architecture: Architecture) -> Parameters:
        linears = sum(linear.size for linear in self.linears(architecture))
        small = self.conv_channels * self.conv_width + 2 * self.num_value_heads
        return Parameters(split=linears + small, whole=norm_parameters(architecture) + self.value_size)

    def weights_met(self, architecture: Architecture) -> int:
        return sum(linear.size for linear in self.linears(architecture)) + self.conv_width * self.conv_channels

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        """By chunks: keys and queries with keys; what a chunk's tokens write, and what they read of it; states met by keys and
        by queries, and keys with what is written into states.

        Backward computes all of this again, then the gradients of all factors.
        """
        scores = CHUNK * (self.keys + self.num_value_heads * self.key_size)
        forward = 2 * (scores + 2 * CHUNK * self.channels + 3 * self.channels * self.key_size)
        return forward * pair.all, 3 * forward * pair.all

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """in_proj's product, the convolution's before and after its activation, queries and keys normed, the recurrence's
        result and what its norm and gate make of it."""
        elements = sum(self.parts.values()) + 2 * self.conv_channels + 2 * self.keys + 2 * self.channels
        numbers = 2 * self.num_key_heads + 6 * self.num_value_heads
        own = (width * elements + FLOAT_BYTES * numbers) / layout.tensor
        return Kept(entering_bytes(architecture, layout, width), own)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        """Of the recurrence: matrices between a chunk's tokens, its factors and their gradients, and states with theirs."""
        states = 4 * self.key_size * self.value_size / CHUNK
        elements = 8 * CHUNK + 8 * self.key_size + 6 * self.value_size + states
        return FLOAT_BYTES * self.num_value_heads * elements / layout.tensor

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        ranks = layout.tensor * layout.context
        yield "key heads of linear attention", self.num_key_heads, ranks
        yield "value heads of linear attention", self.num_value_heads, ranks

    def config(self) -> dict[str, Any]:
        """None: megatron-core has fields of this layer, and refuses context parallelism where they are set."""
        return {}

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Transformer Engine fuses the norm into in_proj, and so checkpoints have it."""
        from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.gated_delta_net import PairGatedDelta
        from nemotron_dpo.policy.norm import Norm

        fields = {
            "input_layernorm": Norm,
            "self_attention": ModuleSpec(PairGatedDelta, params={"kind": self}),
            "self_attn_bda": get_bias_dropout_add,
        }
        return fields, {"input_layernorm.": "self_attention.in_proj.layer_norm_"}

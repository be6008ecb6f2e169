"""Mamba-2 (Dao and Gu, 2024): a recurrence with a matrix state a head, behind a short causal convolution.

A pair's shared prompt is computed once: the state at its end starts both responses.

Legend of names within the layer, as Megatron's: in_proj gives z, x, B, C and dt, conv1d mixes x, B and C over neighbouring
tokens, A_log, D and dt_bias are one number a head, norm is the gated norm over each group's channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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

CHUNK = 64  # tokens that the scan takes together, whatever a file says: it changes no result


@dataclass(frozen=True)
class Mamba:
    """`num_heads` heads of `head_size` channels with `state_size` states each; `num_groups` groups share B and C.

    `conv_width` is the tokens that the convolution sees, `eps` the gated norm's. `chunk_size` is what the model's file says of
    GPU kernels; it takes no part in what the model is.
    """

    num_heads: int
    head_size: int
    state_size: int
    num_groups: int = 1
    conv_width: int = 4
    eps: float = 1e-5
    chunk_size: int = field(default=128, compare=False)

    prefixes = ("norm.", "mixer.")
    module = "mamba"

    @property
    def channels(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.head_size

    @property
    def states(self) -> int:
        """Elements of B of all groups, and of C."""
        return self.num_groups * self.state_size

    @property
    def conv_channels(self) -> int:
        """Channels of x, B and C, over which the convolution goes."""
        return self.channels + 2 * self.states

    @property
    def parts(self) -> dict[str, int]:
        """Rows of what in_proj stacks, in its order. Tensor parallelism divides each, as it does those of the convolution."""
        return {"z": self.channels, "x": self.channels, "B": self.states, "C": self.states, "dt": self.num_heads}

    @property
    def conv_parts(self) -> dict[str, int]:
        """Channels of what the convolution stacks, in its order."""
        return {name: self.parts[name] for name in ("x", "B", "C")}

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        hidden = architecture.hidden_size
        return Linear("mixer.in_proj", hidden, sum(self.parts.values())), Linear("mixer.out_proj", self.channels, hidden)

    def parameters(self, architecture: Architecture) -> Parameters:
        linears = sum(linear.size for linear in self.linears(architecture))
        small = self.conv_channels * (self.conv_width + 1) + 3 * self.num_heads + self.channels
        return Parameters(split=linears + small, whole=norm_parameters(architecture))

    def weights_met(self, architecture: Architecture) -> int:
        linears = sum(linear.size for linear in self.linears(architecture))
        return linears + self.conv_width * self.conv_channels

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        """Of the scan by chunks: C with B and the scores with x within a chunk, x with B into states, states with C.

        Backward computes the scores, the states and what is read of them again, then the gradients of all factors.
        """
        scores, mixed, states = CHUNK * self.states, CHUNK * self.channels, self.channels * self.state_size
        forward, backward = scores + mixed + 2 * states, 3 * scores + 2 * mixed + 6 * states
        return 2 * forward * pair.all, 2 * backward * pair.all

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """in_proj's product, the convolution's before and after its activation, the scan's result and the gated norm's."""
        elements = sum(self.parts.values()) + 2 * self.conv_channels + 2 * self.channels
        own = (width * elements + FLOAT_BYTES * 2 * self.num_heads) / layout.tensor
        return Kept(entering_bytes(architecture, layout, width), own, is_scattered=width < FLOAT_BYTES)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        return FLOAT_BYTES * (4 * self.channels + 4 * self.states) / layout.tensor

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        ranks = layout.tensor * layout.context
        yield "Mamba heads", self.num_heads, ranks
        yield "Mamba groups", self.num_groups, ranks

    def config(self) -> dict[str, Any]:
        return {
            "mamba_num_heads": self.num_heads,
            "mamba_head_dim": self.head_size,
            "mamba_state_dim": self.state_size,
            "mamba_num_groups": self.num_groups,
        }

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Its fields of RecurrentSubmodules. Transformer Engine fuses the norm into in_proj, and so checkpoints have it."""
        from megatron.core.transformer import ModuleSpec

        from nemotron_dpo.policy.mamba_mixer import PairMixer
        from nemotron_dpo.policy.norm import Norm

        fields = {"norm": Norm, "mixer": ModuleSpec(PairMixer, params={"kind": self})}
        return fields, {"norm.": "mixer.in_proj.layer_norm_"}

"""The feed-forward part that every token goes through whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

Activation = Literal["silu", "relu2", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True)
class Dense:
    """down(activation(gate x) * up x) over `ffn_hidden_size` channels; without a gate, down(activation(up x)).

    With `bias` both linear layers have one. Where there is a `clamp`, gate x is at most that, and up x between its negative and
    it; then `linear_offset` is added to up x.
    x is the norm of the stream, or the stream itself where `norm_before` is False; with `norm_after` the norm of the result is
    what is added.
    """

    ffn_hidden_size: int
    activation: Activation = "silu"
    gated: bool = True
    norm_before: bool = True
    norm_after: bool = False
    bias: bool = False
    clamp: float | None = None
    linear_offset: float = 0.0

    module = "mlp"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with: its linear layers' and its norms'."""
        before, after = ("pre_mlp_layernorm.",), ("mlp_bda.post_layernorm.",)
        return *(before if self.norm_before else ()), *(after if self.norm_after else ()), "mlp.linear_fc1.", "mlp.linear_fc2."

    def linears(self, architecture: Architecture) -> tuple[Linear, ...]:
        hidden, ffn = architecture.hidden_size, self.ffn_hidden_size
        return Linear("mlp.linear_fc1", hidden, (2 if self.gated else 1) * ffn), Linear("mlp.linear_fc2", ffn, hidden)

    def parameters(self, architecture: Architecture) -> Parameters:
        whole = norm_parameters(architecture) * (self.norm_before + self.norm_after) + self.biases(architecture)
        return Parameters(split=self.weights_met(architecture), whole=whole)

    def biases(self, architecture: Architecture) -> int:
        """Parameters of the biases of its linear layers."""
        return sum(linear.outputs for linear in self.linears(architecture)) if self.bias else 0

    def weights_met(self, architecture: Architecture) -> int:
        return sum(linear.size for linear in self.linears(architecture))

    def mixing_flops(self, pair: PairTokens) -> tuple[Any, Any]:
        return 0, 0

    def kept(self, architecture: Architecture, layout: Layout, width: int) -> Kept:
        """The first product and what is made of it; of what silu makes nothing, which is made again."""
        elements = (4 if self.gated and self.activation != "silu" else 2) * self.ffn_hidden_size
        entering = entering_bytes(architecture, layout, width, before=self.norm_before, after=self.norm_after)
        return Kept(entering, width * elements / layout.tensor, is_scattered=self.gated or width < FLOAT_BYTES)

    def beside(self, architecture: Architecture, layout: Layout, width: int) -> float:
        return 5 * width * self.ffn_hidden_size / layout.tensor

    def undivided(self, layout: Layout) -> Iterator[tuple[str, int, int]]:
        yield "feed-forward channels", self.ffn_hidden_size, layout.tensor

    def config(self) -> dict[str, Any]:
        from nemotron_dpo.policy.activations import ACTIVATIONS

        return {
            "ffn_hidden_size": self.ffn_hidden_size,
            "gated_linear_unit": self.gated,
            "activation_func": ACTIVATIONS[self.activation],
            "activation_func_clamp_value": self.clamp,
            "glu_linear_offset": self.linear_offset,
            "add_bias_linear": self.bias,
        }

    def spec(self, config: Any) -> tuple[dict[str, Any], dict[str, str]]:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

        from nemotron_dpo.policy.norm import Norm
        from nemotron_dpo.policy.residual import with_norm

        parts: Any = get_gpt_layer_local_spec(normalization=config.normalization).submodules
        fields = {"mlp": parts.mlp, "mlp_bda": with_norm(config) if self.norm_after else parts.mlp_bda}
        if self.norm_before:
            fields["pre_mlp_layernorm"] = Norm
        return fields, {
            "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            "mlp_bda.post_layernorm.": "mlp.linear_fc2.post_layernorm.",
        }

"""What a policy is: one frozen description between HF config.json, run_config.yaml and megatron-core. Knows no torch.

Which architectures are known, and how their files say it, is `checkpoint.families`' and `checkpoint.run_config`'s to know;
what a kind of layer is and costs, `policy.sublayers`'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.mamba import Mamba
from nemotron_dpo.policy.sublayers.rotary import LongRope, Yarn
from nemotron_dpo.policy.sublayers.sublayer import Linear, Sublayer, norm_parameters

Normalization = Literal["RMSNorm", "LayerNorm"]


@dataclass(frozen=True)
class Layer:
    """A layer: a sublayer that mixes tokens, one that computes with each token alone, or either."""

    mixer: Sublayer | None
    feed_forward: Sublayer | None

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """Those that there are, in the order in which they compute."""
        return tuple(part for part in (self.mixer, self.feed_forward) if part is not None)

    @property
    def stored(self) -> Layer:
        """What its parameters depend on."""
        return replace(self, mixer=self.mixer.stored) if isinstance(self.mixer, Attention) else self

    @property
    def num_experts(self) -> int:
        """Experts of its feed-forward part, 0 where it has none."""
        return self.feed_forward.router.num if isinstance(self.feed_forward, Experts) else 0

    def has(self, parameter: str) -> bool:
        """Whether a parameter of this name, within the layer, is one of its own."""
        return any(parameter.startswith(sublayer.prefixes) for sublayer in self.sublayers)


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer: `layers` from first to last, sizes in elements, `dtype` that of the weights as stored.

    `family` is Hugging Face's model_type. `zero_centered_norm` stores norm weights less one. `states_in_float32` is whether a
    recurrence's own parameters (A_log, D, dt_bias) are in float32 beside weights of less. `embedding_scale` is rounded to the
    weights' precision, unless `rounds_scale` is False. What a sublayer adds to the stream is multiplied by `residual_scale`;
    logits are divided by `logits_divisor`, and with `logit_softcap` c then bent to c * tanh(logit / c).
    """

    layers: tuple[Layer, ...]
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    tied_embeddings: bool
    dtype: str
    family: str = "llama"
    normalization: Normalization = "RMSNorm"
    zero_centered_norm: bool = False
    embedding_scale: float = 1.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    states_in_float32: bool = False
    rounds_scale: bool = True
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    logit_softcap: float | None = None

    @property
    def max_length(self) -> int:
        """How many tokens a sequence may have: as many as there are positions, or as many as keep queries as they are."""
        scalings = [attention.rotary.scaling for attention in self.attentions if attention.rotary is not None]
        growing = [scaling.original_length for scaling in scalings if isinstance(scaling, Yarn) and scaling.query_growth]
        return min([self.max_position_embeddings, *growing])

    @property
    def turning_length(self) -> int | None:
        """Beyond how many tokens longrope turns a text in another way; None where all are turned alike."""
        scalings = [attention.rotary.scaling for attention in self.attentions if attention.rotary is not None]
        return next((scaling.original_length for scaling in scalings if isinstance(scaling, LongRope)), None)

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer that has one."""
        return [layer.mixer for layer in self.layers if isinstance(layer.mixer, Attention)]

    @property
    def routers(self) -> list[Router]:
        """The router of each layer that has experts."""
        return [layer.feed_forward.router for layer in self.layers if isinstance(layer.feed_forward, Experts)]

    @property
    def is_hybrid(self) -> bool:
        """Whether it is of the kind that Megatron calls so: recurrent layers, or layers of one sublayer each.

        Its checkpoints number their layers, alike or not, and call the last norm `decoder.final_norm`.
        """
        is_recurrent = any(isinstance(layer.mixer, Mamba) for layer in self.layers)
        return is_recurrent or all(len(layer.sublayers) == 1 for layer in self.layers)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers are alike in their parameters, so that checkpoints may stack their tensors."""
        recurs = any(isinstance(layer.mixer, GatedDelta) for layer in self.layers)  # Bridge numbers these layers, alike or not
        return len({layer.stored for layer in self.layers}) <= 1 and not self.is_hybrid and not recurs

    def sublayers(self) -> Iterator[Sublayer]:
        """The sublayers of all layers."""
        return (sublayer for layer in self.layers for sublayer in layer.sublayers)

    def linears(self) -> Iterator[tuple[int, Linear]]:
        """The linear layers that adapters can be put beside, each with its layer's number."""
        for number, layer in enumerate(self.layers):
            for sublayer in layer.sublayers:
                yield from ((number, linear) for linear in sublayer.linears(self))

    def num_parameters(self, *, met: bool = False) -> int:
        """Of the whole policy, tied embeddings once; with `met`, those of a mixture that one token meets."""
        parameters = (sublayer.parameters(self) for sublayer in self.sublayers())
        layers = sum(each.met if met else each.total for each in parameters)
        return layers + self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2) + norm_parameters(self)

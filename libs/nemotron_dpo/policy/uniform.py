"""A decoder whose layers are all alike, in the flat fields that config files have for it. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from nemotron_dpo.policy.architecture import Architecture, Layer, Normalization
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Activation, Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.rotary import Rotary, Scaling


@dataclass(frozen=True)
class UniformDecoder:
    """`num_layers` layers of attention and a feed-forward part.

    `windowed` says of each layer whether it has the window, None that all have it.
    With `experts` the feed-forward part is a mixture and `ffn_hidden_size` an expert's. The other fields
    are those of Architecture, Attention, Rotary and Dense.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    tied_embeddings: bool
    dtype: str
    family: str = "llama"
    normalization: Normalization = "RMSNorm"
    zero_centered_norm: bool = False
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    rotary_percent: float = 1.0
    rope_scaling: Scaling | None = None
    window: int | None = None
    windowed: tuple[bool, ...] | None = None
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    rounds_scale: bool = True
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    logit_softcap: float | None = None
    qk_norm_over_heads: bool = False
    norm_before: bool = True
    norm_after: bool = False
    sinks: bool = False
    bias: bool = False
    clamp: float | None = None
    linear_offset: float = 0.0
    experts: Router | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def architecture(self) -> Architecture:
        """The same, layer by layer."""
        attention = Attention(
            num_heads=self.num_attention_heads,
            num_groups=self.num_query_groups,
            head_size=self.kv_channels,
            rotary=Rotary(self.rotary_base, self.rotary_percent, self.rope_scaling),
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            window=self.window,
            scale=self.attention_scale,
            qk_norm_over_heads=self.qk_norm_over_heads,
            norm_before=self.norm_before,
            norm_after=self.norm_after,
            sinks=self.sinks,
            out_bias=self.bias,
        )
        norms = self.norm_before, self.norm_after
        dense = Dense(self.ffn_hidden_size, self.activation, self.gated, *norms, self.bias, self.clamp, self.linear_offset)
        layer = Layer(attention, dense if self.experts is None else Experts(self.experts, dense))
        plain = replace(layer, mixer=replace(attention, window=None))
        layers = tuple(layer if has_window else plain for has_window in self.windowed or (True,) * self.num_layers)
        return Architecture(layers=layers, **{name: getattr(self, name) for name in _SHARED})


_OF_ARCHITECTURES = ("layers", "states_in_float32", "around")
_SHARED = tuple(field.name for field in fields(Architecture) if field.name not in _OF_ARCHITECTURES)


def flat(architecture: Architecture) -> UniformDecoder:
    """The inverse of `UniformDecoder.architecture`; the caller knows that the layers are alike but for their windows."""
    windows = [attention.window for attention in architecture.attentions]
    (window,) = set(windows) - {None} or {None}
    layer = architecture.layers[windows.index(window)]
    attention, feed_forward = layer.mixer, layer.feed_forward
    assert isinstance(attention, Attention)
    assert {replace(each, mixer=None) for each in architecture.layers} == {replace(layer, mixer=None)}
    assert attention.rotary is not None
    dense = feed_forward.expert if isinstance(feed_forward, Experts) else feed_forward
    assert isinstance(dense, Dense)
    return UniformDecoder(
        num_layers=len(architecture.layers),
        num_attention_heads=attention.num_heads,
        num_query_groups=attention.num_groups,
        kv_channels=attention.head_size,
        rotary_base=attention.rotary.base,
        rotary_percent=attention.rotary.percent,
        rope_scaling=attention.rotary.scaling,
        qkv_bias=attention.qkv_bias,
        qk_norm=attention.qk_norm,
        window=window,
        sinks=attention.sinks,
        windowed=None if len(set(windows)) == 1 else tuple(each is not None for each in windows),
        attention_scale=attention.scale,
        qk_norm_over_heads=attention.qk_norm_over_heads,
        experts=feed_forward.router if isinstance(feed_forward, Experts) else None,
        **asdict(dense),
        **{name: getattr(architecture, name) for name in _SHARED},
    )

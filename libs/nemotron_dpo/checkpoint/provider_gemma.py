"""What Megatron-Bridge's providers of Gemma have besides those of other models: windows, positions and caps by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint.provider_parts import BRIDGE, symbol
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.rotary import Linear, Rotary

_CLASSES = {"gemma3_text": "gemma3_provider.Gemma3ModelProvider"}
FAMILIES = frozenset(_CLASSES)
# the provider's own fields, or of another form than in other providers
FREE = frozenset(("softmax_scale",))
_SLIDING, _FULL = "sliding_attention", "full_attention"


def family_of(target: str) -> str | None:
    """The family that the name of a provider's class says, of those that are described here."""
    return next((family for family, name in _CLASSES.items() if target.endswith(name)), None)


def as_uniform(architecture: Architecture) -> Architecture:
    """The same with the first of its layers in the place of each: for what providers say of all layers alike."""
    return replace(architecture, layers=architecture.layers[:1] * len(architecture.layers))


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The fields that replace or join those of other models."""
    module, name = _CLASSES[architecture.family].split(".")
    spec = symbol(f"{BRIDGE}.gemma.{module}.{module.removesuffix('_provider')}_layer_spec")
    return {"_target_": f"{BRIDGE}.gemma.{module}.{name}", "transformer_layer_spec": spec, **_positions(architecture)}


def uniform_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """The provider's fields as those of a model whose layers are alike."""
    return {**model, "rotary_base": 1.0, "window_size": None}


def with_layers(architecture: Architecture, model: Mapping[str, Any]) -> Architecture:
    """The architecture that a provider says, which `architecture` is but for what is said here."""
    kinds, (local, base) = _kinds(model), model["rotary_base"]
    factor = float(model.get("rope_scaling_factor") or 1.0)
    rotary = {_FULL: Rotary(float(base), scaling=None if factor == 1.0 else Linear(factor)), _SLIDING: Rotary(float(local))}
    windows = {_FULL: None, _SLIDING: int(model["window_size"])}
    made = {kind: _layer(architecture.layers[0], rotary[kind], windows[kind]) for kind in set(kinds)}
    return replace(architecture, layers=tuple(made[kind] for kind in kinds))


def _layer(layer: Layer, rotary: Rotary, window: int | None) -> Layer:
    assert isinstance(layer.mixer, Attention)
    assert isinstance(layer.feed_forward, Dense)
    attention = replace(layer.mixer, rotary=rotary, window=window, norm_after=True)
    return Layer(attention, replace(layer.feed_forward, norm_after=True))


def _kinds(model: Mapping[str, Any]) -> list[str]:
    """The kind of each layer, from the numbers of local and global layers of a period, or a list of all."""
    pattern, num = model["interleaved_attn_pattern"], model["num_layers"]
    if isinstance(pattern[0], str):
        if len(pattern) != num or set(pattern) - {_SLIDING, _FULL}:
            raise ValueError(f"interleaved_attn_pattern is not of {num} layers")
        return list(pattern)
    local, rest = pattern
    return [_SLIDING if layer % (local + rest) < local else _FULL for layer in range(num)]


def _positions(architecture: Architecture) -> dict[str, Any]:
    found = {_FULL: Rotary(1e6), _SLIDING: Rotary(1e4)}  # of kinds that no layer is of
    kinds = []
    for attention in architecture.attentions:
        assert attention.rotary is not None
        kinds.append(_FULL if attention.window is None else _SLIDING)
        found[kinds[-1]] = attention.rotary
    scaling = found[_FULL].scaling
    if not (scaling is None or isinstance(scaling, Linear)) or found[_SLIDING].scaling is not None:
        raise UserError("Megatron-Bridge's Gemma scales the positions of global layers alone, and linearly")
    window = next((attention.window for attention in architecture.attentions if attention.window is not None), 1)
    return {
        "interleaved_attn_pattern": _pattern(kinds),
        "is_vision_language": False,
        "rope_scaling_factor": 1.0 if scaling is None else scaling.factor,
        "rotary_base": [_number(found[kind].base) for kind in (_SLIDING, _FULL)],
        "window_size": window,
    }


def _pattern(kinds: list[str]) -> list[Any]:
    """The usual one in numbers, which all versions of Megatron-Bridge read; others as a list, which the newest reads."""
    usual = [_FULL if (layer + 1) % 6 == 0 else _SLIDING for layer in range(len(kinds))]
    return [5, 1] if kinds == usual else kinds


def _number(base: float) -> int | float:
    return int(base) if base == int(base) else base

"""What Megatron-Bridge's providers of Gemma 2 and 3 have that those of other models lack: windows, positions, caps by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint import provider_rope
from nemotron_dpo.checkpoint.families.windowed import FULL, SLIDING, one_in
from nemotron_dpo.checkpoint.provider_parts import BRIDGE, symbol
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.rotary import LinearScaling, Rotary

_MODULES = {"gemma2": "gemma2", "gemma3_text": "gemma3"}  # family -> what Bridge calls its text model
FAMILIES = frozenset(_MODULES)
# fields that are read here, where those of other models are limited
FREE = frozenset(("attn_logit_softcapping", "final_logit_softcapping"))


def family_of(target: str) -> str | None:
    """The family that the name of a provider's class says, of those that are described here."""
    return next((family for family in _MODULES if target == _class(family)), None)


def as_uniform(architecture: Architecture) -> Architecture:
    """The same with the first of its layers in the place of each: for what providers say of all layers alike.

    How positions are scaled they say of some layers alone, of Gemma 3.
    """
    first, attention = architecture.layers[0], architecture.attentions[0]
    if architecture.family != "gemma2" and attention.rotary is not None:
        first = replace(first, mixer=replace(attention, rotary=replace(attention.rotary, scaling=None)))
    return replace(architecture, layers=(first,) * len(architecture.layers))


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The fields that replace or join those of other models."""
    own = (_gemma_2 if architecture.family == "gemma2" else _gemma_3)(architecture)
    name = _MODULES[architecture.family]
    spec = symbol(f"{BRIDGE}.gemma.{name}_provider.{name}_layer_spec")
    return {"_target_": _class(architecture.family), "transformer_layer_spec": spec, **own}


def beside_provider(architecture: Architecture) -> dict[str, Any]:
    """What the provider has no field for: Bridge's Gemma 2 has a window in every other layer, from the first on."""
    if architecture.family != "gemma2":
        return {}
    kinds, rotary = _kinds(architecture), architecture.attentions[0].rotary
    assert rotary is not None
    order = {} if kinds == one_in(2, len(kinds)) else {"layer_types": kinds}
    return {**order, **provider_rope.beside_provider(rotary.scaling)}


def uniform_fields(model: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The provider's fields as those of a model whose layers are alike."""
    return {**model, "window_size": None, **({} if family == "gemma2" else {"rotary_base": 1.0})}


def with_layers(architecture: Architecture, model: Mapping[str, Any], extra: Mapping[str, Any]) -> Architecture:
    """The architecture that a provider says, which `architecture` is but for what is said here."""
    alike = architecture.layers[0]
    attention, dense = alike.mixer, alike.feed_forward
    assert isinstance(attention, Attention)
    assert isinstance(dense, Dense)
    attention, dense = replace(attention, norm_after=True), replace(dense, norm_after=True)
    if architecture.family == "gemma2":
        architecture = replace(architecture, logit_softcap=model["final_logit_softcapping"] or None)
        kinds, made = _read_2(attention, model, extra)
    else:
        kinds, made = _read_3(attention, model)
    return replace(architecture, layers=tuple(Layer(made[kind], dense) for kind in kinds))


def _read_2(attention: Attention, model: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[list[str], dict[str, Attention]]:
    """The kind of each layer, and the attention of each kind."""
    number, softcap = model["query_pre_attn_scalar"], model["attn_logit_softcapping"] or None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"query_pre_attn_scalar is {number!r}")
    scale = number**-0.5
    attention = replace(attention, scale=scale, softcap=softcap)
    windowed = replace(attention, window=model["window_size"][0] + 1)  # which does not count the query's own token
    return extra.get("layer_types") or one_in(2, model["num_layers"]), {FULL: attention, SLIDING: windowed}


def _read_3(attention: Attention, model: Mapping[str, Any]) -> tuple[list[str], dict[str, Attention]]:
    """The same. A period has numbers of local and of global layers, or all layers are listed."""
    pattern, num, (local_base, base) = model["interleaved_attn_pattern"], model["num_layers"], model["rotary_base"]
    factor = float(model.get("rope_scaling_factor") or 1.0)
    attention = replace(attention, scale=_scale(attention))
    attention = replace(attention, qk_norm=True)  # whatever qk_layernorm says: Bridge 0.3 wrote False, and has them
    everywhere = replace(attention, rotary=Rotary(float(base), scaling=None if factor == 1.0 else LinearScaling(factor)))
    windowed = replace(attention, rotary=Rotary(float(local_base)), window=int(model["window_size"]))
    if not isinstance(pattern[0], str):
        local, rest = pattern
        pattern = [SLIDING if layer % (local + rest) < local else FULL for layer in range(num)]
    if len(pattern) != num or set(pattern) - {SLIDING, FULL}:
        raise ValueError(f"interleaved_attn_pattern is not of {num} layers")
    return pattern, {FULL: everywhere, SLIDING: windowed}


def _scale(attention: Attention) -> float:
    """That of scores, as transformers computes it of the whole number that its config has: Bridge's is the same but for a bit.

    Raises ValueError where it is of no such number.
    """
    said = attention.head_size**-0.5 if attention.scale is None else attention.scale
    if not said > 0:
        raise ValueError(f"softmax_scale is {said}")
    exact = max(1, round(said**-2)) ** -0.5
    if not math.isclose(exact, said, rel_tol=1e-12):
        raise ValueError(f"softmax_scale is {said}, which is no whole number to the power of -1/2")
    return exact


def _gemma_2(architecture: Architecture) -> dict[str, Any]:
    attention = architecture.attentions[0]
    assert attention.scale is not None
    return {
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": architecture.logit_softcap,
        "query_pre_attn_scalar": round(attention.scale**-2),
        "softmax_scale": None,
        "window_size": [_window(architecture) - 1, 0],
    }


def _gemma_3(architecture: Architecture) -> dict[str, Any]:
    kinds = _kinds(architecture)
    found = {FULL: Rotary(1e6), SLIDING: Rotary(1e4)}  # of kinds that no layer is of
    found |= {kind: each.rotary for kind, each in zip(kinds, architecture.attentions, strict=True) if each.rotary}
    scaling = found[FULL].scaling
    if not (scaling is None or isinstance(scaling, LinearScaling)) or found[SLIDING].scaling is not None:
        raise UserError("Megatron-Bridge's Gemma scales the positions of global layers alone, and linearly")
    return {
        "interleaved_attn_pattern": [5, 1] if kinds == one_in(6, len(kinds)) else kinds,  # a list the newest Bridge alone reads
        "is_vision_language": False,
        "rope_scaling_factor": 1.0 if scaling is None else scaling.factor,
        "rotary_base": [_number(found[kind].base) for kind in (SLIDING, FULL)],
        "window_size": _window(architecture),
    }


def _class(family: str) -> str:
    name = _MODULES[family]
    return f"{BRIDGE}.gemma.{name}_provider.{name.capitalize()}ModelProvider"


def _kinds(architecture: Architecture) -> list[str]:
    return [FULL if attention.window is None else SLIDING for attention in architecture.attentions]


def _window(architecture: Architecture) -> int:
    return next((attention.window for attention in architecture.attentions if attention.window is not None), 1)


def _number(base: float) -> int | float:
    return int(base) if base == int(base) else base

"""Families of which some layers see a window of tokens and the others all: what config.json says of either, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint.families import rope
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.policy.uniform import flat

SLIDING, FULL = "sliding_attention", "full_attention"
_SIZES = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def one_in(num: int, layers: int) -> list[str]:
    """The kinds of layers of which each `num`-th sees all."""
    return [SLIDING if (layer + 1) % num else FULL for layer in range(layers)]


def layers(config: Mapping[str, Any], alike: Attention, dense: Dense, rotary: Mapping[str, Rotary]) -> tuple[Layer, ...]:
    """A layer for each kind that `layer_types` lists. Raises UserError where it lists others or another number of them."""
    kinds = config["layer_types"]
    if unknown := set(kinds) - {SLIDING, FULL}:
        raise UserError(f"layers of {', '.join(sorted(unknown))} are not supported", remedy=f"{SLIDING} and {FULL} are")
    if len(kinds) != config["num_hidden_layers"]:
        raise UserError(f"layer_types names {len(kinds)} layers, and num_hidden_layers {config['num_hidden_layers']}")
    made = {FULL: replace(alike, rotary=rotary[FULL])}
    if SLIDING in kinds:
        made[SLIDING] = replace(alike, rotary=rotary[SLIDING], window=_positive(config, "sliding_window"))
    return tuple(Layer(made[kind], dense) for kind in kinds)


def attention(config: Mapping[str, Any]) -> Attention:
    """The sizes that all attention layers share. Raises ValueError where one of a layer is no positive integer."""
    _, _, heads, groups, head = (_positive(config, key) for key in _SIZES)
    if heads % groups:
        raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    return Attention(heads, groups, head, rotary=None)


def rotary_of_kinds(config: Mapping[str, Any], beside: Mapping[str, tuple[str, float]]) -> dict[str, Rotary]:
    """The positions of either kind of layers.

    transformers 5 has a section of rope_parameters for each. transformers 4 has a key beside them for the theta of each kind,
    which `beside` gives with its default, and scales only those of layers that see all.
    """
    sections = config.get("rope_parameters") or {}
    if unknown := set(sections) - {SLIDING, FULL}:
        raise UserError(f"rope_parameters has {sorted(unknown)[0]}", remedy=f"a section of its own is for {SLIDING} and {FULL}")
    scaling = {FULL: config.get("rope_scaling")}
    found = {}
    for kind, (key, default) in beside.items():
        family = Family("", "", (), defaults={"rope_theta": default})
        own = {"rope_parameters": sections.get(kind), "rope_scaling": scaling.get(kind), "rope_theta": config.get(key)}
        positions = {**own, **{key: config.get(key) for key in ("max_position_embeddings", "original_max_position_embeddings")}}
        found[kind] = Rotary(*rope.read(family, positions, None))  # type: ignore[arg-type] - the caller names the file
    return found


def rotary_of_all(config: Mapping[str, Any]) -> Rotary:
    """The positions that both kinds of layers have."""
    return Rotary(*rope.read(Family("", "", ()), config, None))  # type: ignore[arg-type] - the caller names the file


def written_layers(architecture: Architecture) -> dict[str, Any]:
    """What config.json says of the layers but for their positions."""
    layer = next(iter(architecture.layers))
    mixer, dense = layer.mixer, layer.feed_forward
    assert isinstance(mixer, Attention)
    assert isinstance(dense, Dense)
    windows = [each.window for each in architecture.attentions]
    return {
        "num_hidden_layers": len(architecture.layers),
        "intermediate_size": dense.ffn_hidden_size,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_groups,
        "head_dim": mixer.head_size,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


def written_rotary(architecture: Architecture) -> dict[str, Any]:
    """The positions that all layers have, in the forms of transformers 4 and 5."""
    return rope.write(flat(replace(architecture, layers=architecture.layers[:1])), Family("", "", ()))


def written_positions(architecture: Architecture, beside: Mapping[str, str]) -> dict[str, Any]:
    """The positions of either kind of layers in the form of transformers 5, and in that of 4 with a key for each theta.

    A key that both kinds share is left out where they differ: transformers 4 has no such model.
    """
    sections: dict[str, Any] = {}
    old: dict[str, Any] = {}
    for kind, key in beside.items():
        of_kind = [layer for layer in architecture.layers if (_window(layer) is None) == (kind == FULL)]
        if of_kind:
            written = rope.write(flat(replace(architecture, layers=tuple(of_kind[:1]))), Family("", "", ()))
            sections[kind], theta = written["rope_parameters"], written["rope_theta"]
            old[key] = theta if old.get(key, theta) == theta else None
            if kind == FULL:
                old["rope_scaling"] = written["rope_scaling"]
    return {"rope_parameters": sections, **{key: value for key, value in old.items() if value is not None}}


def scale_of(config: Mapping[str, Any]) -> float:
    """The scale of scores that Gemma says as the number whose root queries are divided by."""
    return _positive(config, "query_pre_attn_scalar") ** -0.5


def scalar_of(architecture: Architecture) -> int:
    """The inverse of `scale_of`."""
    scale = architecture.attentions[0].scale
    assert scale is not None
    return round(scale**-2)


def with_kinds(config: Mapping[str, Any], usual: Sequence[str]) -> dict[str, Any]:
    """`config` with the kinds of its layers, the usual ones where it lists none."""
    listed = config.get("layer_types")
    return {**config, "layer_types": list(usual if listed is None else listed)}


def _window(layer: Layer) -> int | None:
    assert isinstance(layer.mixer, Attention)
    return layer.mixer.window


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value

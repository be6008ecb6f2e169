"""Gemma 2 and 3: norms before and behind each block, and layers that see a window.

Gemma 2 caps scores and logits, Gemma 3 norms queries and keys and has positions of their own for the layers with a window.

HF names are on the right; `{}` is the layer number. Gemma 1 is in `dense.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint.families import windowed
from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, GATED_MLP, QK_NORM
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.olmo import FINAL_NORM, NORMS_AFTER
from nemotron_dpo.checkpoint.families.windowed import FULL, SLIDING
from nemotron_dpo.checkpoint.hf_weights import copy
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.dense import Dense

_LAYER, _HF = "decoder.layers.{}.", "model.layers.{}."
_WEIGHTS = (
    *EMBEDDING,
    copy(f"{_LAYER}input_layernorm.weight", f"{_HF}input_layernorm.weight"),
    copy(f"{_LAYER}pre_mlp_layernorm.weight", f"{_HF}pre_feedforward_layernorm.weight"),
    *NORMS_AFTER,
    FINAL_NORM,
    *ATTENTION,
    *GATED_MLP,
)
# what transformers takes where config.json has no such key
_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),  # which transformers does not read
    "attention_bias": (False,),
}
# the key beside rope_parameters that has the theta of a kind of layers
_THETAS = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
_PATTERN = 6


def _normal_2(config: Mapping[str, Any]) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    with_defaults = {**_DEFAULTS, "vocab_size": 256000, "max_position_embeddings": 8192, **caps, **config}
    return windowed.with_kinds(with_defaults, windowed.one_in(2, with_defaults["num_hidden_layers"]))


def _normal_3(config: Mapping[str, Any]) -> dict[str, Any]:
    with_defaults = {**_DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072, **config}
    pattern = config.get("sliding_window_pattern")
    usual = windowed.one_in(_PATTERN if pattern is None else pattern, with_defaults["num_hidden_layers"])
    return windowed.with_kinds(with_defaults, usual)


def _read_2(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    softcap = _cap(config, "attn_logit_softcapping")
    attention = replace(windowed.attention(config), scale=windowed.scale_of(config), softcap=softcap, norm_after=True)
    return windowed.layers(config, attention, _dense(config), dict.fromkeys((FULL, SLIDING), windowed.rotary_of_all(config)))


def _read_3(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    attention = replace(windowed.attention(config), scale=windowed.scale_of(config), qk_norm=True, norm_after=True)
    return windowed.layers(config, attention, _dense(config), windowed.rotary_of_kinds(config, _THETAS))


def _dense(config: Mapping[str, Any]) -> Dense:
    return Dense(config["intermediate_size"], "gelu_tanh", norm_after=True)


def _cap(config: Mapping[str, Any], key: str) -> float | None:
    """What scores or logits are bent to; null has none."""
    value = config[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise ValueError(f"{key} is {value!r}")
    return value


def _write_2(architecture: Architecture) -> dict[str, Any]:
    attention = architecture.attentions[0]
    return {
        **windowed.written_layers(architecture),
        **windowed.written_rotary(architecture),
        "query_pre_attn_scalar": windowed.scalar_of(architecture),
        "attn_logit_softcapping": attention.softcap,
    }


def _write_3(architecture: Architecture) -> dict[str, Any]:
    written = windowed.written_layers(architecture)
    usual = written["layer_types"] == windowed.one_in(_PATTERN, len(architecture.layers))
    return {
        **written,
        **windowed.written_positions(architecture, {kind: key for kind, (key, _) in _THETAS.items()}),
        "query_pre_attn_scalar": windowed.scalar_of(architecture),
        **({"sliding_window_pattern": _PATTERN} if usual else {}),  # all that the first version of transformers with it reads
    }


def _whole_2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_whole_3(config), "logit_softcap": _cap(config, "final_logit_softcapping")}


def _whole_3(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(config["hidden_size"])}


_SCALE = {"scale": "query_pre_attn_scalar"}

GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    _WEIGHTS,
    traits={"zero_centered_norm": True},
    keys={**_SCALE, "softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"},
    only=_ONLY,
    read=_whole_2,
    layered=Layered(_normal_2, _read_2, _write_2),
)

GEMMA3_TEXT = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    (*_WEIGHTS, *QK_NORM),
    traits={"zero_centered_norm": True},
    keys=_SCALE,
    only={**_ONLY, "attn_logit_softcapping": (), "final_logit_softcapping": ()},
    read=_whole_3,
    layered=Layered(_normal_3, _read_3, _write_3),
)

FAMILIES = (GEMMA2, GEMMA3_TEXT)

"""Gemma 3 (text): norms before and behind each block, windows in five of six layers, positions of their own for these.

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


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    with_defaults = {**_DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072, **config}
    pattern = config.get("sliding_window_pattern")
    usual = windowed.one_in(_PATTERN if pattern is None else pattern, with_defaults["num_hidden_layers"])
    return windowed.with_kinds(with_defaults, usual)


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    attention = replace(windowed.attention(config), scale=windowed.scale_of(config), qk_norm=True, norm_after=True)
    dense = Dense(config["intermediate_size"], "gelu_tanh", norm_after=True)
    return windowed.layers(config, attention, dense, windowed.rotary_of_kinds(config, _THETAS))


def _write(architecture: Architecture) -> dict[str, Any]:
    written = windowed.written_layers(architecture)
    usual = written["layer_types"] == windowed.one_in(_PATTERN, len(architecture.layers))
    return {
        **written,
        **windowed.written_positions(architecture, {kind: key for kind, (key, _) in _THETAS.items()}),
        "query_pre_attn_scalar": windowed.scalar_of(architecture),
        **({"sliding_window_pattern": _PATTERN} if usual else {}),  # all that the first version of transformers with it reads
    }


def _embedding_scale(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(config["hidden_size"])}


GEMMA3_TEXT = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    (*_WEIGHTS, *QK_NORM),
    traits={"zero_centered_norm": True},
    keys={"scale": "query_pre_attn_scalar"},
    only={**_ONLY, "attn_logit_softcapping": (), "final_logit_softcapping": ()},
    read=_embedding_scale,
    layered=Layered(_normal, _read, _write),
)

FAMILIES = (GEMMA3_TEXT,)

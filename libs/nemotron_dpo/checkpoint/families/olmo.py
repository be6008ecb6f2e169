"""OLMo 2 and 3: norms of what attention and the dense part add, none before them, and queries and keys normed over all heads.

Of OLMo 3 three of four layers see a window, and the others alone have scaled positions.

HF names are on the right; `{}` is the layer number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint.families import windowed
from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, GATED_MLP, QK_NORM
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.windowed import FULL, SLIDING
from nemotron_dpo.checkpoint.hf_weights import Rule, copy
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.dense import Dense

_LAYER, _HF = "decoder.layers.{}.", "model.layers.{}."
NORMS_AFTER: tuple[Rule, ...] = (
    copy(f"{_LAYER}self_attn_bda.post_layernorm.weight", f"{_HF}post_attention_layernorm.weight"),
    copy(f"{_LAYER}mlp_bda.post_layernorm.weight", f"{_HF}post_feedforward_layernorm.weight"),
)
FINAL_NORM = copy("decoder.final_layernorm.weight", "model.norm.weight")

_WEIGHTS = (*EMBEDDING, *NORMS_AFTER, FINAL_NORM, *ATTENTION, *QK_NORM, *GATED_MLP)
_NORMS: Mapping[str, Any] = {"norm_before": False, "norm_after": True}
_QK_NORM: Mapping[str, Any] = {"qk_norm": True, "qk_norm_over_heads": True}
# what transformers takes where the config.json of an OLMo 3 has no such key
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "eos_token_id": 50279,
    "pad_token_id": 1,
}
_THETA = 500000.0  # which transformers 5 takes for layers with a window, whatever rope_theta says
_THETAS: Mapping[str, tuple[str, float]] = dict.fromkeys((FULL, SLIDING), ("rope_theta", _THETA))


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {**_DEFAULTS, **config}
    heads = own["num_attention_heads"]
    for key, usual in (("num_key_value_heads", heads), ("head_dim", own["hidden_size"] // heads)):
        own[key] = usual if own.get(key) is None else own[key]
    return windowed.with_kinds(own, windowed.one_in(4, own["num_hidden_layers"]))


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    said = set(config.get("rope_parameters") or ()) == {FULL, SLIDING}
    if not said and config.get("rope_theta") not in (None, _THETA):
        what = f"rope_theta {config['rope_theta']} without rope_parameters is not supported"
        raise UserError(what, remedy="versions of transformers differ in what it means; say it in rope_parameters")
    attention = replace(windowed.attention(config), **_NORMS, **_QK_NORM)
    dense = Dense(config["intermediate_size"], **_NORMS)
    return windowed.layers(config, attention, dense, windowed.rotary_of_kinds(config, _THETAS))


def _write(architecture: Architecture) -> dict[str, Any]:
    positions = windowed.written_positions(architecture, {kind: key for kind, (key, _) in _THETAS.items()})
    return {**windowed.written_layers(architecture), **positions}


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", _WEIGHTS, traits={**_QK_NORM, **_NORMS})
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", _WEIGHTS, only={"hidden_act": ("silu",)}, layered=Layered(_normal, _read, _write))

FAMILIES = (OLMO2, OLMO3)

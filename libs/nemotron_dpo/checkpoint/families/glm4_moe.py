"""GLM-4.5, GLM-4.5-Air, GLM-4.6: grouped-query attention that rotates half of each head, leading dense layers, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families import leading_dense
from nemotron_dpo.checkpoint.families.dense import ATTENTION, QK_NORM, QKV_BIAS
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention

# what transformers takes where config.json has no such key
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
}
_ATTENTION = {  # fields of Attention -> keys of config.json
    "num_heads": "num_attention_heads",
    "num_groups": "num_key_value_heads",
    "head_size": "head_dim",
    "qkv_bias": "attention_bias",
    "qk_norm": "use_qk_norm",
}


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    named = leading_dense.normal(config, _DEFAULTS)
    return {"head_dim": named["hidden_size"] // named["num_attention_heads"], **named}


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    leading_dense.check_sizes(config, ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise ValueError(f"{config['num_attention_heads']} heads do not share {config['num_key_value_heads']} keys evenly")
    for key in ("attention_bias", "use_qk_norm"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key} is {config[key]!r}")
    named = {field: config[key] for field, key in _ATTENTION.items()}
    return leading_dense.read(config, Attention(**named, rotary=leading_dense.read_rotary(GLM4_MOE, config)))


def _write(architecture: Architecture) -> dict[str, Any]:
    attention = architecture.attentions[0]
    own = {key: getattr(attention, field) for field, key in _ATTENTION.items()}
    return {**own, **leading_dense.write_rotary(attention.rotary, architecture, GLM4_MOE), **leading_dense.write(architecture)}


GLM4_MOE = Family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    (*leading_dense.WEIGHTS, *ATTENTION, *QKV_BIAS, *QK_NORM),
    defaults={"partial_rotary_factor": 0.5},
    only={**leading_dense.OF_SIGMOIDS, "attention_bias": (False, True)},
    layered=Layered(_normal, _read, _write),
)

FAMILIES = (GLM4_MOE,)

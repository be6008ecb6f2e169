"""DeepSeek-V2-Lite, V3 and R1, Moonlight, Kimi K2, GLM-4.7-Flash: latent attention, leading dense layers, experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.checkpoint.families import leading_dense
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.hf_weights import Rule, copy
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.rotary import Scaling, Yarn

_OURS, _THEIRS = "decoder.layers.{}.self_attention.", "model.layers.{}.self_attn."
_WEIGHTS: tuple[Rule, ...] = (
    *leading_dense.WEIGHTS,
    *(
        copy(f"{_OURS}{ours}.weight", f"{_THEIRS}{theirs}.weight")
        for ours, theirs in (
            ("linear_q_proj", "q_proj"),
            ("linear_q_down_proj", "q_a_proj"),
            ("q_layernorm", "q_a_layernorm"),
            ("linear_q_up_proj", "q_b_proj"),
            ("linear_kv_down_proj", "kv_a_proj_with_mqa"),
            ("kv_layernorm", "kv_a_layernorm"),
            ("linear_kv_up_proj", "kv_b_proj"),
            ("linear_proj", "o_proj"),
        )
    ),
)
# what transformers takes where config.json has no such key
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_OF_V2: Mapping[str, Any] = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OF_FLASH: Mapping[str, Any] = {
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
}
_SIZES = {  # fields of LatentAttention -> keys of config.json
    "num_heads": "num_attention_heads",
    "latent_rank": "kv_lora_rank",
    "plain_size": "qk_nope_head_dim",
    "rotary_size": "qk_rope_head_dim",
    "value_size": "v_head_dim",
}
_ATTENTION = {**_SIZES, "query_rank": "q_lora_rank"}
_ONLY: Mapping[str, tuple[Any, ...]] = {**leading_dense.OF_SIGMOIDS, "rope_interleave": (True,)}


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    return leading_dense.normal(config, _DEFAULTS)


def _normal_v2(config: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {key: value for key, value in {**_DEFAULTS, **_OF_V2}.items() if key != "num_experts_per_tok"}
    return leading_dense.normal(config, defaults)


def _normal_flash(config: Mapping[str, Any]) -> dict[str, Any]:
    """GLM-4.7-Flash says of each layer what it is."""
    named = leading_dense.normal(config, {**_DEFAULTS, **_OF_FLASH})
    kinds = named.get("mlp_layer_types")
    if kinds is not None:
        num, dense = named["num_hidden_layers"], kinds.count("dense")
        if kinds != ["dense"] * dense + ["sparse"] * (num - dense):
            raise ValueError(f"mlp_layer_types {kinds} is not some dense layers and then sparse ones, {num} in all")
        named["first_k_dense_replace"] = dense
    return named


def _read(config: Mapping[str, Any], family: Family) -> tuple[Layer, ...]:
    ranks = () if config["q_lora_rank"] is None else ("q_lora_rank",)
    leading_dense.check_sizes(config, (*_SIZES.values(), *ranks))
    heads = config["num_attention_heads"]
    if config.get("num_key_value_heads", heads) != heads:
        raise ValueError(f"num_key_value_heads is {config['num_key_value_heads']} of {heads} heads")
    if config["qk_rope_head_dim"] % 2:
        raise ValueError(f"qk_rope_head_dim {config['qk_rope_head_dim']} is odd")
    named = {field: config[key] for field, key in _ATTENTION.items()}
    rotary = leading_dense.read_rotary(family, config)
    attention = LatentAttention(**named, rotary=replace(rotary, scaling=scaling_of_latent(rotary.scaling)))
    return leading_dense.read(config, attention, "softmax" if family is DEEPSEEK_V2 else "sigmoid")


def scaling_of_latent(scaling: Scaling | None) -> Yarn | None:
    """None or YaRN in the form in which Megatron has it: with both factors (mscale, mscale_all_dim), or with neither.

    Raises UserError for others. Of one factor alone Megatron makes another amplitude than transformers.
    """
    if scaling is None:
        return None
    if not isinstance(scaling, Yarn) or scaling.attention_factor is not None or not scaling.truncate:
        raise UserError("this rope scaling is not supported beside latent attention", remedy="plain YaRN is")
    if scaling.mscale and scaling.mscale_all_dim:
        return replace(scaling, mscale=float(scaling.mscale), mscale_all_dim=float(scaling.mscale_all_dim))
    if scaling.mscale not in (None, 1.0) or scaling.mscale_all_dim:
        raise UserError(
            "YaRN with one of mscale and mscale_all_dim is not supported", remedy="with both it is, and with neither"
        )
    return replace(scaling, mscale=None, mscale_all_dim=None)


def _write(architecture: Architecture, family: Family) -> dict[str, Any]:
    attention = architecture.layers[0].mixer
    assert isinstance(attention, LatentAttention)
    return {
        **{key: getattr(attention, field) for field, key in _ATTENTION.items()},
        "num_key_value_heads": attention.num_heads,
        **leading_dense.write_rotary(attention.rotary, architecture, family),
        **leading_dense.write(architecture),
    }


def _write_flash(architecture: Architecture) -> dict[str, Any]:
    written = _write(architecture, GLM4_MOE_LITE)
    num, dense = written["num_hidden_layers"], written.pop("first_k_dense_replace")
    return {**written, "mlp_layer_types": ["dense"] * dense + ["sparse"] * (num - dense)}


DEEPSEEK_V2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    _WEIGHTS,
    only=leading_dense.OF_SOFTMAX,
    layered=Layered(
        _normal_v2, lambda config: _read(config, DEEPSEEK_V2), lambda architecture: _write(architecture, DEEPSEEK_V2)
    ),
)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _WEIGHTS,
    only=_ONLY,
    layered=Layered(_normal, lambda config: _read(config, DEEPSEEK_V3), lambda architecture: _write(architecture, DEEPSEEK_V3)),
)
GLM4_MOE_LITE = Family(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    _WEIGHTS,
    only=_ONLY,
    layered=Layered(_normal_flash, lambda config: _read(config, GLM4_MOE_LITE), _write_flash),
)
FAMILIES = (DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE)

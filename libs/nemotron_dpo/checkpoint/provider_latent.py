"""Latent attention as the fields of Megatron-Bridge's MLAModelProvider, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families.deepseek import scaling_of_latent
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.rotary import Rotary, Yarn

# fields of LatentAttention -> the provider's
_SIZES = {
    "num_heads": "num_attention_heads",
    "latent_rank": "kv_lora_rank",
    "plain_size": "qk_head_dim",
    "rotary_size": "qk_pos_emb_head_dim",
    "value_size": "v_head_dim",
}
# fields of Yarn -> the provider's
_YARN = {
    "factor": "rotary_scaling_factor",
    "original_length": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}
_ALONE = {"mscale": 1.0, "mscale_all_dim": 0.0}  # how Megatron says that there are no such factors
_DEFAULTS = {
    "rotary_scaling_factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    **_ALONE,
}


def write(attention: LatentAttention) -> dict[str, Any]:
    """The provider's fields."""
    scaling = attention.rotary.scaling
    yarn: dict[str, Any] = {"rotary_scaling_factor": 1.0, "mscale_all_dim": 1.0}
    if scaling is not None:
        assert isinstance(scaling, Yarn)  # nothing else is read
        yarn = {key: getattr(scaling, field) for field, key in _YARN.items()}
        yarn |= {key: value for key, value in _ALONE.items() if yarn[key] is None}
    return {
        **{key: getattr(attention, field) for field, key in _SIZES.items()},
        "apply_rope_fusion": False,
        "kv_channels": attention.key_size,
        "multi_latent_attention": True,
        "num_query_groups": attention.num_heads,
        "q_lora_rank": attention.query_rank,
        "qk_layernorm": True,
        "rope_type": "rope" if scaling is None else "yarn",
        "rotary_base": attention.rotary.base,
        "rotary_percent": 1.0,
        **yarn,
    }


def read(model: Mapping[str, Any]) -> LatentAttention:
    """What the fields describe. Raises UserError where they need what is not supported, KeyError where one is missing."""
    if not model.get("qk_layernorm"):
        raise UserError("latent attention without norms of its small vectors is not supported", remedy="qk_layernorm: true is")
    for key in _SIZES.values():
        if isinstance(model[key], bool) or not isinstance(model[key], int) or model[key] < 1:
            raise ValueError(f"{key} is {model[key]!r}")
    named = {field: model[key] for field, key in _SIZES.items()}
    return LatentAttention(
        **named, query_rank=model.get("q_lora_rank"), rotary=Rotary(float(model["rotary_base"]), 1.0, _read_yarn(model))
    )


def _read_yarn(model: Mapping[str, Any]) -> Yarn | None:
    kind = model.get("rope_type", "yarn")
    if kind not in ("rope", "yarn"):
        raise UserError(f"rope_type: {kind!r} is not supported", remedy="'rope' or 'yarn' is")
    said = {key: model.get(key, default) for key, default in _DEFAULTS.items()}
    if kind == "rope" or said["rotary_scaling_factor"] == 1:
        return None
    return scaling_of_latent(Yarn(**{field: said[key] for field, key in _YARN.items()}))

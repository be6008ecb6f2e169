"""A decoder with leading dense layers and experts in the others as provider fields of Megatron-Bridge, and back.

`moe_layer_freq` says which layers have experts, 0 or 1 each. All experts are alike, and all have shared experts beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint import provider_latent as latent
from nemotron_dpo.checkpoint import provider_rope
from nemotron_dpo.checkpoint.provider_limits import refuse_unsupported
from nemotron_dpo.checkpoint.provider_parts import (
    ACTIVATIONS,
    BRIDGE,
    largest_power_of_two,
    precision,
    read_activation,
    read_dtype,
    symbol,
)
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

FAMILIES = ("glm4_moe", "deepseek_v3", "deepseek_v2", "glm4_moe_lite")
# fields of sublayers -> the provider's
_ATTENTION = {
    "num_heads": "num_attention_heads",
    "num_groups": "num_query_groups",
    "head_size": "kv_channels",
    "qkv_bias": "add_qkv_bias",
    "qk_norm": "qk_layernorm",
}
_ROUTER = {
    "num": "num_moe_experts",
    "top_k": "moe_router_topk",
    "score": "moe_router_score_function",
    "expert_bias": "moe_router_enable_expert_bias",
    "scaling": "moe_router_topk_scaling_factor",
}
_FIXED: Mapping[str, Any] = {
    "activation_func": symbol(ACTIVATIONS["silu"]),
    "add_bias_linear": False,
    "attention_dropout": 0.0,
    "gated_linear_unit": True,
    "hidden_dropout": 0.0,
    "moe_grouped_gemm": True,
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_token_dispatcher_type": "alltoall",
    "pipeline_model_parallel_size": 1,
    "position_embedding_type": "rope",
    "should_pad_vocab": False,
    "tensor_model_parallel_size": 1,
    "transformer_layer_spec": {
        "_partial_": True,
        "_target_": "megatron.core.models.gpt.gpt_layer_specs.get_gpt_decoder_block_spec",
        "use_transformer_engine": True,
    },
}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "layernorm_zero_centered_gamma": (False,),
    "gated_linear_unit": (True,),
    "moe_shared_expert_gate": (False,),
    "window_size": (None,),
}
_OF_LATENT: Mapping[str, tuple[Any, ...]] = {"rope_scaling": (False,)}  # whose own fields say how positions are scaled
_OF_HEADS: Mapping[str, tuple[Any, ...]] = {"position_embedding_type": ("rope", "yarn"), "rope_scaling": (False, True)}
_SCALES_OF_HEADS = frozenset(("seq_len_interpolation_factor",))
# what is said of experts, and of predicting several tokens, which is not trained
_FREE = frozenset(
    (
        *_ROUTER.values(),
        "moe_layer_freq",
        "moe_router_num_groups",
        "moe_shared_expert_intermediate_size",
        "mtp_num_layers",
        "multi_latent_attention",
    )
)


def describes(model: Mapping[str, Any], extra: Mapping[str, Any]) -> bool:
    """Whether the provider's fields are those of such a decoder."""
    if extra.get("family"):
        return extra["family"] in FAMILIES
    is_of_sigmoids = model.get("moe_router_score_function") == "sigmoid"
    return bool(model.get("num_moe_experts")) and (is_of_sigmoids or bool(model.get("multi_latent_attention")))


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The provider's fields, in the YAML form from which Megatron-Bridge makes the provider."""
    layers = architecture.layers
    return {
        **_FIXED,
        **_mixer(layers[0].mixer),
        **_experts(architecture),
        "hidden_size": architecture.hidden_size,
        "layernorm_epsilon": architecture.norm_epsilon,
        "layernorm_zero_centered_gamma": False,
        "make_vocab_size_divisible_by": largest_power_of_two(architecture.vocab_size),
        "moe_layer_freq": [int(layer.num_experts > 0) for layer in layers],
        "normalization": architecture.normalization,
        "num_layers": len(layers),
        "seq_length": architecture.max_position_embeddings,
        "share_embeddings_and_output_weights": architecture.tied_embeddings,
        "vocab_size": architecture.vocab_size,
        **precision(architecture.dtype),
    }


def from_provider(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Architecture:
    """The architecture that the fields describe. `extra` is what run_config.py stores apart.

    Raises UserError where a field needs what is not supported, KeyError and the like where the fields are no model.
    """
    if is_latent := bool(model.get("multi_latent_attention")):
        refuse_unsupported(model, {**_ONLY, **_OF_LATENT}, _FREE)
    else:
        refuse_unsupported(model, {**_ONLY, **_OF_HEADS}, _FREE | _SCALES_OF_HEADS)
    if read_activation(model) != "silu":
        raise UserError("experts beside dense layers with another activation than SiLU are not supported")
    mixer = latent.read(model) if is_latent else _read_attention(model, extra)
    tokens: dict[str, Any] = {name: extra.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Architecture(
        layers=_read_layers(model, mixer),
        hidden_size=size(model, "hidden_size"),
        vocab_size=size(model, "vocab_size"),
        max_position_embeddings=size(model, "seq_length"),
        norm_epsilon=model["layernorm_epsilon"],
        tied_embeddings=model["share_embeddings_and_output_weights"],
        dtype=read_dtype(model),
        family=extra.get("family") or _infer_family(model),
        **tokens,
    )


def size(model: Mapping[str, Any], key: str) -> int:
    """The positive integer under `key`. Raises ValueError where it is none."""
    if isinstance(model[key], bool) or not isinstance(model[key], int) or model[key] < 1:
        raise ValueError(f"{key} is {model[key]!r}")
    return model[key]


def _infer_family(model: Mapping[str, Any]) -> str:
    """Bridge has no class of its own for any: attention and router tell. A GLM-4.7-Flash is taken for a DeepSeek-V3."""
    if not model.get("multi_latent_attention"):
        return "glm4_moe"
    return "deepseek_v3" if model.get("moe_router_score_function") == "sigmoid" else "deepseek_v2"


def _mixer(attention: Sublayer | None) -> dict[str, Any]:
    if isinstance(attention, LatentAttention):
        return {"_target_": f"{BRIDGE}.mla_provider.MLAModelProvider", **latent.write(attention)}
    assert isinstance(attention, Attention)
    assert attention.rotary is not None
    return {
        "_target_": f"{BRIDGE}.gpt_provider.GPTModelProvider",
        **{key: getattr(attention, field) for field, key in _ATTENTION.items()},
        "rotary_base": attention.rotary.base,
        "rotary_percent": attention.rotary.percent,
        **provider_rope.to_provider(attention.rotary.scaling),
    }


def beside_provider(architecture: Architecture) -> dict[str, Any]:
    """What the provider has no field for; of latent attention's positions it has all that is supported."""
    attention = architecture.layers[0].mixer
    scaling = attention.rotary.scaling if isinstance(attention, Attention) and attention.rotary is not None else None
    return provider_rope.beside_provider(scaling)


def _experts(architecture: Architecture) -> dict[str, Any]:
    experts = architecture.layers[-1].feed_forward
    assert isinstance(experts, Experts)
    assert experts.shared is not None
    dense = [layer.feed_forward.ffn_hidden_size for layer in architecture.layers if isinstance(layer.feed_forward, Dense)]
    router, channels = experts.router, experts.expert.ffn_hidden_size
    groups = {"moe_router_group_topk": router.picked_groups, "moe_router_num_groups": router.num_groups}
    return {
        **{key: getattr(router, field) for field, key in _ROUTER.items()},
        "ffn_hidden_size": dense[0] if dense else channels,
        "moe_aux_loss_coeff": router.aux_loss_coeff or 0.0,
        "moe_ffn_hidden_size": channels,
        "moe_router_pre_softmax": router.score == "softmax",
        "moe_shared_expert_intermediate_size": experts.shared.ffn_hidden_size,
        **(groups if router.num_groups > 1 else {}),
    }


def _read_layers(model: Mapping[str, Any], mixer: Sublayer) -> tuple[Layer, ...]:
    experts, num = Layer(mixer, _read_experts(model)), size(model, "num_layers")
    said = model.get("moe_layer_freq", 1)
    which = [int(number % said == 0) for number in range(num)] if isinstance(said, int) else list(said)
    if len(which) != num or which != sorted(which) or not set(which) <= {0, 1} or not any(which):
        what = f"moe_layer_freq: {said!r} of {num} layers is not supported"
        raise UserError(what, remedy="some 0 for dense layers and then a 1 for each layer of experts is")
    dense = Layer(mixer, Dense(size(model, "ffn_hidden_size")))
    return tuple(experts if has else dense for has in which)


def _read_attention(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Attention:
    heads, scaling = size(model, "num_attention_heads"), provider_rope.from_provider(model, extra)
    return Attention(
        num_heads=heads,
        num_groups=model.get("num_query_groups") or heads,
        head_size=model.get("kv_channels") or model["hidden_size"] // heads,
        rotary=Rotary(float(model["rotary_base"]), float(model.get("rotary_percent", 1.0)), scaling),
        qkv_bias=bool(model.get("add_qkv_bias")),
        qk_norm=bool(model.get("qk_layernorm")),
    )


def _read_experts(model: Mapping[str, Any]) -> Experts:
    coeff, channels = model.get("moe_aux_loss_coeff"), size(model, "moe_ffn_hidden_size")
    score, has_bias = model.get("moe_router_score_function", "softmax"), bool(model.get("moe_router_enable_expert_bias"))
    if score == "softmax" and not model.get("moe_router_pre_softmax"):
        raise UserError("shared experts beside a router that renormalizes a softmax are not supported")
    router = Router(
        num=size(model, "num_moe_experts"),
        top_k=size(model, "moe_router_topk"),
        renormalize=score == "sigmoid" and model["moe_router_topk"] > 1,
        aux_loss_coeff=float(coeff) if isinstance(coeff, int | float) else None,
        score=score,
        expert_bias=has_bias,
        scaling=float(model.get("moe_router_topk_scaling_factor") or 1.0),
        num_groups=model.get("moe_router_num_groups") or 1,
        picked_groups=model.get("moe_router_group_topk") or 1,
    )
    if score not in ("sigmoid", "softmax") or has_bias != (score == "sigmoid"):
        what = f"a router of {score} {'with' if has_bias else 'without'} an expert bias is not supported beside shared experts"
        raise UserError(what, remedy="one of sigmoid with it is, and one of softmax without")
    if not model.get("moe_shared_expert_intermediate_size"):
        raise UserError("leading dense layers or latent attention without shared experts are not supported")
    return Experts(router, Dense(channels), Dense(size(model, "moe_shared_expert_intermediate_size")))

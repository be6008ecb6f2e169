"""A hybrid as the fields of Megatron-Bridge's MambaModelProvider, and back.

The newest Bridge calls it HybridModelProvider, and its pattern of layers `hybrid_layer_pattern`. Both are read, and the first,
which both read, is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemotron_dpo.checkpoint.families.layer_letters import build_layers, layer_kinds, pattern_of
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
from nemotron_dpo.policy.sublayers.mamba import Mamba
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

FAMILY = "nemotron_h"
_PROVIDER = f"{BRIDGE}.mamba.mamba_provider"
_PATTERNS = ("hybrid_layer_pattern", "hybrid_override_pattern")
_WIDTH, _EPSILON = 4, 1e-5  # of the convolution and of the gated norm, which megatron-core fixes
# fields of sublayers -> the provider's
_MAMBA = {
    "num_heads": "mamba_num_heads",
    "head_size": "mamba_head_dim",
    "state_size": "mamba_state_dim",
    "num_groups": "mamba_num_groups",
}
_ATTENTION = {"num_heads": "num_attention_heads", "num_groups": "num_query_groups", "head_size": "kv_channels"}
_ROUTER = {
    "num": "num_moe_experts",
    "top_k": "moe_router_topk",
    "score": "moe_router_score_function",
    "expert_bias": "moe_router_enable_expert_bias",
    "scaling": "moe_router_topk_scaling_factor",
}
_EXPERTS = {  # what Bridge says of all experts
    "moe_grouped_gemm": True,
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_token_dispatcher_type": "alltoall",
}
_ONLY: Mapping[str, tuple[Any, ...]] = {  # what differs from the limits of other models
    "normalization": ("RMSNorm",),
    "position_embedding_type": ("none",),
    "gated_linear_unit": (False,),
    "layernorm_epsilon": (_EPSILON,),
    "layernorm_zero_centered_gamma": (False,),
    "share_embeddings_and_output_weights": (False,),
    "add_qkv_bias": (False,),
    "qk_layernorm": (False,),
    "softmax_scale": (None,),
    "window_size": (None,),
    "fp32_residual_connection": (False,),
    "moe_shared_expert_gate": (False,),
}
# what is said of experts, and of predicting several tokens, which is not trained
_FREE = frozenset(
    (
        "moe_layer_freq",
        "moe_router_enable_expert_bias",
        "moe_router_num_groups",
        "moe_router_score_function",
        "moe_router_topk_scaling_factor",
        "moe_shared_expert_intermediate_size",
        "mtp_num_layers",
    )
)


def describes(model: Mapping[str, Any]) -> bool:
    """Whether the provider's fields are those of a hybrid."""
    target = str(model.get("_target_")).lower()
    named = ".mamba." in target or ".hybrid." in target or ".nemotronh." in target
    return named or bool(model.get("is_hybrid_model")) or any(model.get(key) for key in _PATTERNS)


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The provider's fields, in the YAML form from which Megatron-Bridge makes the provider."""
    pattern = pattern_of(architecture)
    fields: dict[str, Any] = {}
    for layer in dict.fromkeys(architecture.layers):
        for sublayer in layer.sublayers:
            fields |= _written(sublayer)
    heads = {"num_attention_heads": fields.get("mamba_num_heads", 1), "num_query_groups": None} if "*" not in pattern else {}
    return {
        "_target_": f"{_PROVIDER}.MambaModelProvider",
        "activation_func": symbol(ACTIVATIONS["relu2"]),
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "ffn_hidden_size": fields.get("moe_ffn_hidden_size", architecture.hidden_size),
        "gated_linear_unit": False,
        "hidden_dropout": 0.0,
        "hidden_size": architecture.hidden_size,
        "hybrid_override_pattern": pattern,
        "is_hybrid_model": True,
        "layernorm_epsilon": architecture.norm_epsilon,
        "make_vocab_size_divisible_by": largest_power_of_two(architecture.vocab_size),
        "mamba_stack_spec": symbol(f"{_PROVIDER}.get_default_mamba_stack_spec"),
        "normalization": architecture.normalization,
        "num_layers": len(pattern),
        "pipeline_model_parallel_size": 1,
        "position_embedding_type": "none",
        "seq_length": architecture.max_position_embeddings,
        "share_embeddings_and_output_weights": False,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        "vocab_size": architecture.vocab_size,
        **precision(architecture.dtype),
        **heads,
        **fields,
    }


def from_provider(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Architecture:
    """The architecture that the fields describe. `extra` is what run_config.py stores apart.

    Raises UserError where a field needs what is not supported, KeyError and the like where the fields are no model.
    """
    nested = model.get("transformer")  # of HybridModelConfig, which keeps the transformer's own fields apart
    model = {**(nested if isinstance(nested, Mapping) else {}), **model}
    refuse_unsupported(model, _ONLY, _FREE)
    if read_activation(model) != "relu2":
        raise UserError("a hybrid with another activation than squared ReLU is not supported")
    if (family := extra.get("family", FAMILY)) != FAMILY:
        raise UserError(f"a hybrid of family {family!r} is not supported", remedy=f"{FAMILY} is")
    made: dict[str, Callable[[], Layer]] = {
        "M": lambda: Layer(_read_mamba(model, extra), None),
        "*": lambda: Layer(_read_attention(model), None),
        "-": lambda: Layer(None, _dense(model["ffn_hidden_size"])),
        "E": lambda: Layer(None, _read_experts(model)),
    }
    tokens: dict[str, Any] = {name: extra.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Architecture(
        layers=build_layers(_kinds(model), made),
        hidden_size=_size(model, "hidden_size"),
        vocab_size=_size(model, "vocab_size"),
        max_position_embeddings=_size(model, "seq_length"),
        norm_epsilon=_EPSILON,
        tied_embeddings=False,
        dtype=read_dtype(model),
        family=FAMILY,
        states_in_float32=bool(extra.get("states_in_float32")),
        **tokens,
    )


def _kinds(model: Mapping[str, Any]) -> str:
    said = [layer_kinds(str(model[key])) for key in _PATTERNS if model.get(key)]
    if not said:
        raise UserError("a hybrid without a pattern of layers is not supported", remedy=f"{_PATTERNS[0]} names them")
    count = model.get("num_layers") or len(said[0])
    if said[0] != said[-1] or count != len(said[0]):
        raise UserError(f"the pattern names {len(said[0])} layers, and num_layers is {count}")
    return said[0]


def _read_mamba(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Mamba:
    head, groups = model.get("mamba_head_dim") or 64, model.get("mamba_num_groups") or 8
    heads, state = model.get("mamba_num_heads") or 2 * model["hidden_size"] // head, model.get("mamba_state_dim") or 128
    chunk = {"chunk_size": extra["chunk_size"]} if extra.get("chunk_size") else {}
    if heads % groups:
        raise ValueError(f"{heads} Mamba heads do not divide into {groups} groups")
    return Mamba(heads, head, state, groups, _WIDTH, eps=_EPSILON, **chunk)


def _read_attention(model: Mapping[str, Any]) -> Attention:
    heads = _size(model, "num_attention_heads")
    head = model.get("kv_channels") or model["hidden_size"] // heads
    return Attention(heads, model.get("num_query_groups") or heads, head, rotary=None)


def _read_experts(model: Mapping[str, Any]) -> Experts:
    score, top_k, coeff = (
        model.get("moe_router_score_function", "softmax"),
        model["moe_router_topk"],
        model.get("moe_aux_loss_coeff"),
    )
    router = Router(
        num=_size(model, "num_moe_experts"),
        top_k=top_k,
        renormalize=top_k > 1 if score == "sigmoid" else not model.get("moe_router_pre_softmax"),
        aux_loss_coeff=float(coeff) if isinstance(coeff, int | float) else None,
        score=score,
        expert_bias=bool(model.get("moe_router_enable_expert_bias")),
        scaling=float(model.get("moe_router_topk_scaling_factor") or 1.0),
        num_groups=model.get("moe_router_num_groups") or 1,
        picked_groups=model.get("moe_router_group_topk") or 1,
    )
    if score != "sigmoid" or not router.expert_bias:
        raise UserError("a hybrid's router without sigmoids or without an expert bias is not supported")
    if not model.get("moe_shared_expert_intermediate_size"):
        raise UserError("a hybrid's mixture without a shared expert is not supported")
    expert = _dense(model.get("moe_ffn_hidden_size") or model["ffn_hidden_size"])
    return Experts(router, expert, _dense(model["moe_shared_expert_intermediate_size"]))


def _dense(channels: int) -> Dense:
    return Dense(channels, "relu2", gated=False)


def _size(model: Mapping[str, Any], key: str) -> int:
    if isinstance(model[key], bool) or not isinstance(model[key], int) or model[key] < 1:
        raise ValueError(f"{key} is {model[key]!r}")
    return model[key]


def _written(sublayer: Sublayer) -> dict[str, Any]:
    if isinstance(sublayer, Mamba):
        if sublayer.conv_width != _WIDTH:
            what = f"a convolution over {sublayer.conv_width} tokens has no place in Megatron's checkpoints"
            raise UserError(what, remedy=f"one over {_WIDTH} has")
        return {key: getattr(sublayer, field) for field, key in _MAMBA.items()}
    if isinstance(sublayer, Attention):
        return {key: getattr(sublayer, field) for field, key in _ATTENTION.items()}
    if isinstance(sublayer, Dense):
        return {"ffn_hidden_size": sublayer.ffn_hidden_size}
    assert isinstance(sublayer, Experts)
    assert sublayer.shared is not None
    router = sublayer.router
    groups = {"moe_router_group_topk": router.picked_groups, "moe_router_num_groups": router.num_groups}
    return {
        **{key: getattr(router, field) for field, key in _ROUTER.items()},
        "moe_aux_loss_coeff": router.aux_loss_coeff or 0.0,
        "moe_ffn_hidden_size": sublayer.expert.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": sublayer.shared.ffn_hidden_size,
        **_EXPERTS,
        **(groups if router.num_groups > 1 else {}),
    }

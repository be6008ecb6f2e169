"""A decoder whose layers are alike but for their windows as the fields of Megatron-Bridge's GPTModelProvider, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from nemotron_dpo.checkpoint import provider_rope
from nemotron_dpo.checkpoint.provider_parts import (
    ACTIVATIONS,
    BRIDGE,
    largest_power_of_two,
    precision,
    read_activation,
    read_dtype,
    symbol,
)
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import UniformDecoder

_TARGETS = {  # families for which Bridge has a provider class of its own
    "gemma": f"{BRIDGE}.gemma.gemma_provider.GemmaModelProvider",
    "gpt_oss": f"{BRIDGE}.gpt_oss.gpt_oss_provider.GPTOSSProvider",
    "mistral": f"{BRIDGE}.mistral.mistral_provider.MistralModelProvider",
}
# fields of a decoder for which no provider has a place
_OWN = ("norm_before", "norm_after", "qk_norm_over_heads", "rounds_scale", "residual_scale", "logits_divisor")
_DEFAULTS = {field.name: field.default for field in fields(UniformDecoder)}
# what is read here of fields that are limited otherwise
POSITIONS = {"position_embedding_type": ("rope", "yarn")}
FREE = frozenset(("seq_len_interpolation_factor", "window_attn_skip_freq"))
FREE_OF_GPT_OSS = FREE | {"add_bias_linear", "activation_func_clamp_value", "glu_linear_offset", "softmax_type"}


def to_provider(decoder: UniformDecoder) -> dict[str, Any]:
    """The provider's fields."""
    return {
        "_target_": _TARGETS.get(decoder.family, f"{BRIDGE}.gpt_provider.GPTModelProvider"),
        **_sizes(decoder),
        **_layers(decoder),
        **_positions(decoder),
        **precision(decoder.dtype),
        **_experts(decoder),
    }


def beside_provider(decoder: UniformDecoder) -> dict[str, Any]:
    """What no provider has a field for."""
    own = {name: getattr(decoder, name) for name in _OWN if getattr(decoder, name) != _DEFAULTS[name]}
    return {**own, **provider_rope.beside_provider(decoder.rope_scaling)}


def from_provider(model: dict[str, Any], extra: dict[str, Any], family: str) -> UniformDecoder:
    """The decoder of `family` that the fields describe; `extra` is what is stored apart."""
    _check_sizes(model)
    heads, hidden = model["num_attention_heads"], model["hidden_size"]
    experts = _read_experts(model)
    window = _read_window(model, extra)
    windowed = _read_windowed(model) if window else None
    return UniformDecoder(
        num_layers=model["num_layers"],
        hidden_size=hidden,
        ffn_hidden_size=(experts and model.get("moe_ffn_hidden_size")) or model["ffn_hidden_size"],
        num_attention_heads=heads,
        num_query_groups=model.get("num_query_groups") or heads,
        kv_channels=model.get("kv_channels") or hidden // heads,
        vocab_size=model["vocab_size"],
        max_position_embeddings=model["seq_length"],
        norm_epsilon=model["layernorm_epsilon"],
        rotary_base=float(model["rotary_base"]),
        tied_embeddings=model["share_embeddings_and_output_weights"],
        dtype=read_dtype(model),
        family=family,
        normalization=model["normalization"],
        zero_centered_norm=bool(model.get("layernorm_zero_centered_gamma")),
        activation=read_activation(model),  # type: ignore[arg-type] - it returns one of the literals
        gated=bool(model.get("gated_linear_unit")),
        qkv_bias=bool(model.get("add_qkv_bias") or model.get("add_bias_linear")),
        qk_norm=bool(model.get("qk_layernorm")),
        rotary_percent=float(model.get("rotary_percent", 1.0)),
        rope_scaling=provider_rope.from_provider(model, extra),
        window=None if windowed == () else window,
        windowed=windowed or None,
        embedding_scale=extra.get("embedding_scale", hidden**0.5 if family.startswith("gemma") else 1.0),
        attention_scale=model.get("softmax_scale"),
        sinks=model.get("softmax_type") == "learnable",
        bias=bool(model.get("add_bias_linear")),
        clamp=model.get("activation_func_clamp_value"),
        linear_offset=float(model.get("glu_linear_offset") or 0.0),
        experts=experts,
        **{name: extra[name] for name in _OWN if name in extra},
        bos_token_id=extra.get("bos_token_id"),
        eos_token_id=extra.get("eos_token_id"),
        pad_token_id=extra.get("pad_token_id"),
    )


def _sizes(decoder: UniformDecoder) -> dict[str, Any]:
    return {
        "ffn_hidden_size": decoder.ffn_hidden_size,
        "hidden_size": decoder.hidden_size,
        "kv_channels": decoder.kv_channels,
        "make_vocab_size_divisible_by": largest_power_of_two(decoder.vocab_size),
        "num_attention_heads": decoder.num_attention_heads,
        "num_layers": decoder.num_layers,
        "num_query_groups": decoder.num_query_groups,
        "pipeline_model_parallel_size": 1,
        "seq_length": decoder.max_position_embeddings,
        "share_embeddings_and_output_weights": decoder.tied_embeddings,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        "vocab_size": decoder.vocab_size,
    }


def _layers(decoder: UniformDecoder) -> dict[str, Any]:
    return {
        "activation_func": symbol(ACTIVATIONS[decoder.activation]),
        "add_bias_linear": decoder.bias,
        "add_qkv_bias": decoder.qkv_bias,
        "attention_dropout": 0.0,
        "gated_linear_unit": decoder.gated,
        "hidden_dropout": 0.0,
        "layernorm_epsilon": decoder.norm_epsilon,
        "layernorm_zero_centered_gamma": decoder.zero_centered_norm,
        "normalization": decoder.normalization,
        "qk_layernorm": decoder.qk_norm,
        **({"softmax_type": "learnable"} if decoder.sinks else {}),
        **({} if decoder.clamp is None else {"activation_func_clamp_value": decoder.clamp}),
        **({"glu_linear_offset": decoder.linear_offset} if decoder.linear_offset else {}),
        **({} if decoder.attention_scale is None else {"softmax_scale": decoder.attention_scale}),
        "transformer_layer_spec": symbol(f"{BRIDGE}.gpt_provider.default_layer_spec"),
    }


def _positions(decoder: UniformDecoder) -> dict[str, Any]:
    window = {} if decoder.window is None else {"window_size": [decoder.window - 1, 0], "cp_comm_type": "a2a"}
    if decoder.windowed is not None:
        window["window_attn_skip_freq"] = [int(has_window) for has_window in decoder.windowed]
    base = decoder.rotary_base
    return {
        **provider_rope.to_provider(decoder.rope_scaling),
        "rotary_base": int(base) if base == int(base) else base,
        "rotary_percent": decoder.rotary_percent,
        **window,
    }


def _experts(decoder: UniformDecoder) -> dict[str, Any]:
    if decoder.experts is None:
        return {}
    return {
        "moe_aux_loss_coeff": decoder.experts.aux_loss_coeff or 0.0,
        "moe_ffn_hidden_size": decoder.ffn_hidden_size,
        "moe_grouped_gemm": True,
        "moe_router_load_balancing_type": "aux_loss" if decoder.experts.balances else "none",
        "moe_router_pre_softmax": not decoder.experts.renormalize,
        "moe_router_score_function": "softmax",
        "moe_router_topk": decoder.experts.top_k,
        "moe_token_dispatcher_type": "alltoall",
        "num_moe_experts": decoder.experts.num,
    }


def _read_experts(model: dict[str, Any]) -> Router | None:
    num, coeff = model.get("num_moe_experts"), model.get("moe_aux_loss_coeff", 0.0)
    own = float(coeff) if isinstance(coeff, int | float) else None  # a list has one for each of several losses
    bias = bool(model.get("add_bias_linear"))
    if not num:
        return None
    return Router(num, model["moe_router_topk"], not model.get("moe_router_pre_softmax"), own, bias=bias, balances=not bias)


def _read_window(model: dict[str, Any], extra: dict[str, Any]) -> int | None:
    """The window with the query's own token, which megatron-core does not count.

    Our first versions, which applied no window, wrote it where the count without is due; ours now say it apart.
    """
    if not model.get("window_size"):
        return None
    before, is_ours = model["window_size"][0], "bos_token_id" in extra
    return extra.get("window", before) if is_ours else before + 1


def _read_windowed(model: dict[str, Any]) -> tuple[bool, ...] | None:
    """Which layers have the window, None where all have it, as megatron-core counts them; () where none has."""
    skip, num = model.get("window_attn_skip_freq"), model["num_layers"]
    if skip is None:
        return None
    flags = [bool(flag) for flag in skip] if isinstance(skip, list) else [number % skip != 0 for number in range(1, num + 1)]
    if len(flags) != num:
        raise ValueError(f"window_attn_skip_freq is of {len(flags)} layers, and num_layers {num}")
    return () if not any(flags) else None if all(flags) else tuple(flags)


def _check_sizes(model: dict[str, Any]) -> None:
    for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size", "seq_length"):
        if not isinstance(model[key], int) or model[key] < 1:
            raise ValueError(f"{key} is {model[key]!r}")

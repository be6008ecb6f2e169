"""A policy with gated delta nets as the fields of Megatron-Bridge's providers for Qwen3-Next and Qwen3.5, and back.

Its fields for which layers are recurrences, and which have experts, are numbers or lists with an entry a layer. Lists are
written where a number does not say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

FAMILIES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
_VARIANT = "gated_delta_net"
_NEXT = "qwen.qwen_provider.Qwen3NextModelProvider"
_SPECS = "megatron.core.models.gpt.experimental_attention_variant_module_specs"
_SPEC = f"{_SPECS}.get_transformer_block_with_experimental_attention_variant_spec"
# fields of sublayers -> the provider's
_DELTA = {
    "num_key_heads": "linear_num_key_heads",
    "num_value_heads": "linear_num_value_heads",
    "key_size": "linear_key_head_dim",
    "value_size": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
}
_ATTENTION = {"num_heads": "num_attention_heads", "num_groups": "num_query_groups", "head_size": "kv_channels"}
_EXPERTS = {  # what Bridge says of all experts
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "global_aux_loss",
    "moe_router_score_function": "softmax",
    "moe_shared_expert_gate": True,
    "moe_token_dispatcher_type": "alltoall",
}
_ONLY: Mapping[str, tuple[Any, ...]] = {  # what differs from the limits of other models
    "normalization": ("RMSNorm",),
    "attention_output_gate": (True,),
    "experimental_attention_variant": (_VARIANT,),
    "gated_linear_unit": (True,),
    "layernorm_zero_centered_gamma": (True,),
    "moe_shared_expert_gate": (True,),
    "qk_layernorm": (True,),
    "add_qkv_bias": (False,),
    "rope_scaling": (False,),
    "window_size": (None,),
    "fp32_residual_connection": (False,),
}
_FREE = frozenset(("moe_layer_freq", "moe_shared_expert_intermediate_size"))


def describes(model: Mapping[str, Any]) -> bool:
    """Whether the provider's fields are those of a policy with gated delta nets."""
    return model.get("experimental_attention_variant") == _VARIANT


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The provider's fields, in the YAML form from which Megatron-Bridge makes the provider."""
    mixers, parts = zip(*((layer.mixer, layer.feed_forward) for layer in architecture.layers), strict=True)
    linear, sparse = [isinstance(mixer, GatedDelta) for mixer in mixers], [isinstance(part, Experts) for part in parts]
    fields: dict[str, Any] = {"ffn_hidden_size": architecture.hidden_size}  # Bridge wants one, though no layer be dense
    for sublayer in dict.fromkeys((*mixers, *parts)):
        fields |= _written(sublayer)
    fields |= {"moe_layer_freq": 1 if all(sparse) else list(map(int, sparse))} if any(sparse) else {}
    return {
        "_target_": f"{BRIDGE}.{_NEXT if architecture.family == FAMILIES[0] else 'gpt_provider.GPTModelProvider'}",
        "activation_func": symbol(ACTIVATIONS["silu"]),
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "attention_dropout": 0.0,
        "attention_output_gate": True,
        "experimental_attention_variant": _VARIANT,
        "gated_linear_unit": True,
        "hetereogenous_dist_checkpoint": True,
        "hidden_dropout": 0.0,
        "hidden_size": architecture.hidden_size,
        "layernorm_epsilon": architecture.norm_epsilon,
        "layernorm_zero_centered_gamma": True,
        "linear_attention_freq": _frequency(linear),
        "make_vocab_size_divisible_by": largest_power_of_two(architecture.vocab_size),
        "normalization": architecture.normalization,
        "num_layers": len(architecture.layers),
        "num_moe_experts": None,
        "pipeline_model_parallel_size": 1,
        "position_embedding_type": "rope",
        "qk_layernorm": True,
        "seq_length": architecture.max_position_embeddings,
        "share_embeddings_and_output_weights": architecture.tied_embeddings,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        "transformer_layer_spec": symbol(_SPEC),
        "vocab_size": architecture.vocab_size,
        **precision(architecture.dtype),
        **fields,
    }


def from_provider(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Architecture:
    """The architecture that the fields describe. `extra` is what run_config.py stores apart.

    Raises UserError where a field needs what is not supported, KeyError and the like where the fields are no model.
    """
    refuse_unsupported(model, _ONLY, _FREE)
    if read_activation(model) != "silu":
        raise UserError("gated delta nets with another activation than SiLU are not supported")
    if (family := extra.get("family") or _infer_family(model)) not in FAMILIES:
        raise UserError(f"family {family!r} with gated delta nets is not supported", remedy=f"{', '.join(FAMILIES)} are")
    tokens: dict[str, Any] = {name: extra.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Architecture(
        layers=_read_layers(model),
        hidden_size=_size(model, "hidden_size"),
        vocab_size=_size(model, "vocab_size"),
        max_position_embeddings=_size(model, "seq_length"),
        norm_epsilon=model["layernorm_epsilon"],
        tied_embeddings=bool(model["share_embeddings_and_output_weights"]),
        dtype=read_dtype(model),
        family=family,
        zero_centered_norm=True,
        states_in_float32=bool(extra.get("states_in_float32")),
        **tokens,
    )


def _infer_family(model: Mapping[str, Any]) -> str:
    """Bridge has a provider's class for Qwen3-Next alone."""
    if str(model.get("_target_")).endswith(_NEXT):
        return FAMILIES[0]
    return FAMILIES[2] if model.get("num_moe_experts") else FAMILIES[1]


def _read_layers(model: Mapping[str, Any]) -> tuple[Layer, ...]:
    count, every = _size(model, "num_layers"), model["linear_attention_freq"]
    linear = every if isinstance(every, list) else [int(number % every > 0) for number in range(1, count + 1)]
    often = model.get("moe_layer_freq", 1)
    sparse = often if isinstance(often, list) else [int(number % often == 0) for number in range(count)]
    if not model.get("num_moe_experts"):
        sparse = [0] * count
    for name, listed in (("linear_attention_freq", linear), ("moe_layer_freq", sparse)):
        if len(listed) != count:
            raise UserError(f"{name} names {len(listed)} layers, and num_layers is {count}")
    kinds = set(zip(linear, sparse, strict=True))
    made = {(recurs, routes): Layer(_read_mixer(model, recurs), _read_part(model, routes)) for recurs, routes in kinds}
    return tuple(made[kind] for kind in zip(linear, sparse, strict=True))


def _read_mixer(model: Mapping[str, Any], recurs: int) -> Sublayer:
    if recurs:
        sizes = {field: _size(model, key) for field, key in _DELTA.items()}
        return GatedDelta(**sizes, eps=model["layernorm_epsilon"])
    rotary = Rotary(float(model["rotary_base"]), float(model.get("rotary_percent", 1.0)))
    heads: dict[str, Any] = {field: _size(model, key) for field, key in _ATTENTION.items()}
    return Attention(**heads, rotary=rotary, qk_norm=True, gated=True)


def _read_part(model: Mapping[str, Any], routes: int) -> Sublayer:
    if not routes:
        return Dense(_size(model, "ffn_hidden_size"))
    coeff = model.get("moe_aux_loss_coeff", 0.0)
    own = float(coeff) if isinstance(coeff, int | float) else None  # a list has one for each of several losses
    renormalize = not model.get("moe_router_pre_softmax")
    router = Router(_size(model, "num_moe_experts"), _size(model, "moe_router_topk"), renormalize, own)
    expert, shared = (Dense(_size(model, f"moe_{name}")) for name in ("ffn_hidden_size", "shared_expert_intermediate_size"))
    return Experts(router, expert, shared, shared_gate=True)


def _size(model: Mapping[str, Any], key: str) -> int:
    if isinstance(model[key], bool) or not isinstance(model[key], int) or model[key] < 1:
        raise ValueError(f"{key} is {model[key]!r}")
    return model[key]


def _frequency(linear: Sequence[bool]) -> int | list[int]:
    """Every how manyth layer is attention, where the first of them says it of all; else a list of the others."""
    every = linear.index(False) + 1 if False in linear else len(linear) + 1
    says_all = all(is_linear == (number % every > 0) for number, is_linear in enumerate(linear, 1))
    return every if says_all else list(map(int, linear))


def _written(sublayer: Sublayer) -> dict[str, Any]:
    if isinstance(sublayer, GatedDelta):
        return {key: getattr(sublayer, field) for field, key in _DELTA.items()}
    if isinstance(sublayer, Attention):
        return {**{key: getattr(sublayer, field) for field, key in _ATTENTION.items()}, **_positions(sublayer)}
    if isinstance(sublayer, Dense):
        return {"ffn_hidden_size": sublayer.ffn_hidden_size}
    assert isinstance(sublayer, Experts)
    assert sublayer.shared is not None
    return {
        "moe_aux_loss_coeff": sublayer.router.aux_loss_coeff or 0.0,
        "moe_ffn_hidden_size": sublayer.expert.ffn_hidden_size,
        "moe_router_pre_softmax": not sublayer.router.renormalize,
        "moe_router_topk": sublayer.router.top_k,
        "moe_shared_expert_intermediate_size": sublayer.shared.ffn_hidden_size,
        "num_moe_experts": sublayer.router.num,
        **_EXPERTS,
    }


def _positions(attention: Attention) -> dict[str, Any]:
    rotary = attention.rotary
    assert rotary is not None
    if rotary.scaling is not None:
        raise UserError("rope scaling beside gated delta nets has no place in Megatron's checkpoints")
    base = int(rotary.base) if rotary.base == int(rotary.base) else rotary.base
    return {"rope_scaling": False, "rotary_base": base, "rotary_percent": rotary.percent}

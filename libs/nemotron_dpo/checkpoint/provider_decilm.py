"""Llama-Nemotron Super and Ultra as the fields of Megatron-Bridge's provider, and back.

Bridge keeps the config.json of the model whole in one of the fields. What the layers are, it says alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.checkpoint.families.decilm import LLAMA_NEMOTRON
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
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.rotary import Llama3Scaling

FAMILY = LLAMA_NEMOTRON.model_type
_PROVIDER = f"{BRIDGE}.llama_nemotron.llama_nemotron_provider"
_CONFIG = "heterogeneous_layers_config_encoded_json"
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "gated_linear_unit": (True,),
    "heterogeneous_block_specs": (False, True),
    "layernorm_zero_centered_gamma": (False,),
    "num_moe_experts": (None,),
    "qk_layernorm": (False,),
    "add_qkv_bias": (False,),
    "window_size": (None,),
}
# of the provider's own fields, those that config.json says as well, and by which key
_BOTH = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}


def describes(model: Mapping[str, Any]) -> bool:
    """Whether the provider's fields are those of such a model."""
    return bool(model.get(_CONFIG))


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The provider's fields, in the YAML form from which Megatron-Bridge makes the provider."""
    attention = architecture.attentions[0]
    assert attention.rotary is not None
    scaling, base = attention.rotary.scaling, attention.rotary.base
    dense = [part.ffn_hidden_size for part in architecture.sublayers() if isinstance(part, Dense)]
    return {
        "_target_": f"{_PROVIDER}.LlamaNemotronHeterogeneousProvider",
        "activation_func": symbol(ACTIVATIONS["silu"]),
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "ffn_hidden_size": dense[0] if dense else architecture.hidden_size,
        "gated_linear_unit": True,
        _CONFIG: json.dumps(config.write(architecture)),
        "hidden_dropout": 0.0,
        "hidden_size": architecture.hidden_size,
        "kv_channels": attention.head_size,
        "layernorm_epsilon": architecture.norm_epsilon,
        "make_vocab_size_divisible_by": largest_power_of_two(architecture.vocab_size),
        "normalization": "RMSNorm",
        "num_attention_heads": attention.num_heads,
        "num_layers": len(architecture.layers),
        "num_query_groups": attention.num_groups,
        "pipeline_model_parallel_size": 1,
        "position_embedding_type": "rope",
        "rope_scaling": isinstance(scaling, Llama3Scaling),
        "rope_scaling_factor": scaling.factor if isinstance(scaling, Llama3Scaling) else 1.0,
        "rotary_base": base,
        "rotary_percent": 1.0,
        "seq_length": architecture.max_position_embeddings,
        "share_embeddings_and_output_weights": architecture.tied_embeddings,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        "transformer_layer_spec": symbol(f"{_PROVIDER}.heterogeneous_layer_spec"),
        "vocab_size": architecture.vocab_size,
        **precision(architecture.dtype),
    }


def from_provider(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Architecture:
    """The architecture that the fields describe. `extra` is what run_config.py stores apart.

    Raises UserError where a field needs what is not supported, or where what is said twice differs.
    """
    refuse_unsupported(model, _ONLY)
    said = json.loads(model[_CONFIG])
    if read_activation(model) != "silu" or said.get("model_type") != FAMILY:
        raise UserError(
            f"heterogeneous layers of a {said.get('model_type')!r} are not supported", remedy=f"those of {FAMILY} are"
        )
    for field, key in _BOTH.items():
        if model[field] != said[key]:
            raise UserError(f"{field} is {model[field]!r}, and {key} of {_CONFIG} {said[key]!r}")
    tokens: dict[str, Any] = {name: extra.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    architecture = config.from_config({**said, **dict.fromkeys(tokens)}, Path(_CONFIG))
    return replace(architecture, dtype=read_dtype(model), **tokens)

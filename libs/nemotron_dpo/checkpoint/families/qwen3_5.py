"""Qwen3.5 (text): Qwen3-Next's layers, all with a dense part or all with experts. config.json <-> layers.

Its rotary positions have a section for each axis of a picture. The axes of a text are one, so the sections say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families import qwen3_next
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.qwen3_next_weights import DENSE, EXPERTS, IN_PROJ_APART, RECURRENCE
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts

_OF_NEXT = ("decoder_sparse_step", "norm_topk_prob", "mlp_only_layers")
# what transformers takes where config.json has no such key
_DEFAULTS: Mapping[str, Any] = {
    **{key: value for key, value in qwen3_next.DEFAULTS.items() if key not in _OF_NEXT},
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
_MOE_DEFAULTS: Mapping[str, Any] = {
    **_DEFAULTS,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 8,
    "num_experts": 256,
}
_ROUTER = {"num": "num_experts", "top_k": "num_experts_per_tok"}
_ONLY: Mapping[str, tuple[Any, ...]] = {"attn_output_gate": (True,), "mlp_only_layers": ([],)}


def _read_dense(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    dense = Dense(config["intermediate_size"])
    return tuple(Layer(mixer, dense) for mixer in qwen3_next.read_mixers(config, TEXT))


def _read_moe(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Its router renormalizes, whatever a config says."""
    if not config["num_experts"]:
        raise ValueError(f"num_experts is {config['num_experts']!r}")
    experts = qwen3_next.read_experts(config, _ROUTER)
    return tuple(Layer(mixer, experts) for mixer in qwen3_next.read_mixers(config, MOE_TEXT))


def _write_dense(architecture: Architecture) -> dict[str, Any]:
    (dense,) = {layer.feed_forward for layer in architecture.layers}
    assert isinstance(dense, Dense)
    return {**qwen3_next.write_mixers(architecture, TEXT), "intermediate_size": dense.ffn_hidden_size}


def _write_moe(architecture: Architecture) -> dict[str, Any]:
    (experts,) = {layer.feed_forward for layer in architecture.layers}
    assert isinstance(experts, Experts)
    return {**qwen3_next.write_mixers(architecture, MOE_TEXT), **qwen3_next.write_experts(experts)}


def _family(model_type: str, hf_class: str, layered: Layered, *, has_experts: bool) -> Family:
    return Family(
        model_type,
        hf_class,
        (*DENSE, IN_PROJ_APART, *RECURRENCE, *(EXPERTS if has_experts else ())),
        traits={"zero_centered_norm": True},
        defaults={"partial_rotary_factor": 0.25},
        only=_ONLY,
        layered=layered,
    )


_DENSE_LAYERS = Layered(lambda config: qwen3_next.with_defaults(config, _DEFAULTS), _read_dense, _write_dense)
_MOE_LAYERS = Layered(lambda config: qwen3_next.with_defaults(config, _MOE_DEFAULTS), _read_moe, _write_moe)
TEXT = _family("qwen3_5_text", "Qwen3_5ForCausalLM", _DENSE_LAYERS, has_experts=False)
MOE_TEXT = _family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", _MOE_LAYERS, has_experts=True)
FAMILIES = (TEXT, MOE_TEXT)

"""Mixture-of-experts families: a router, and a gated feed-forward part for each expert.

HF names are on the right; the first `{}` is the layer number, the second the expert's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families import qwen_windows
from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, NORMS, QK_NORM
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.hf_weights import Rule, copy, stack
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import UniformDecoder

# what transformers takes where config.json says no coefficient
_AUX_LOSS_COEF = 0.001


def _mixture(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """The rules of the router and the experts under model.layers.{}.`block`; `gate`, `up` and `down` name the projections."""
    ours, theirs = "decoder.layers.{}.mlp.experts.local_experts.{}.", f"model.layers.{{}}.{block}.experts.{{}}."
    return (
        copy("decoder.layers.{}.mlp.router.weight", f"model.layers.{{}}.{block}.gate.weight"),
        stack(f"{ours}linear_fc1.weight", f"{theirs}{gate}.weight", f"{theirs}{up}.weight"),
        copy(f"{ours}linear_fc2.weight", f"{theirs}{down}.weight"),
    )


def _num_experts(config: Mapping[str, Any]) -> int:
    """The number of experts: Qwen's is num_local_experts in transformers 5 and num_experts in transformers 4."""
    return config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]


def _mixtral_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    return _experts(config, renormalize=True)


def _qwen_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    window = qwen_windows.window_of(config)  # of all layers: transformers reads no max_window_layers of this family
    return {"window": window, **_experts(config, renormalize=config.get("norm_topk_prob", False))}


def _experts(config: Mapping[str, Any], *, renormalize: bool) -> dict[str, Any]:
    coeff = config.get("router_aux_loss_coef", _AUX_LOSS_COEF)
    own = None if coeff is None else float(coeff)
    return {"experts": Router(_num_experts(config), config["num_experts_per_tok"], renormalize, own)}


def _write_mixtral(decoder: UniformDecoder) -> dict[str, Any]:
    assert decoder.experts is not None
    coeff = decoder.experts.aux_loss_coeff
    return {
        "num_local_experts": decoder.experts.num,
        "num_experts_per_tok": decoder.experts.top_k,
        "output_router_logits": False,
        **({} if coeff is None else {"router_aux_loss_coef": coeff}),
    }


def _write_qwen(decoder: UniformDecoder) -> dict[str, Any]:
    """`intermediate_size` is the size of dense layers, and the model has none: any value serves."""
    assert decoder.experts is not None
    return {
        **_write_mixtral(decoder),
        "num_experts": decoder.experts.num,
        "norm_topk_prob": decoder.experts.renormalize,
        "intermediate_size": decoder.ffn_hidden_size,
        "use_sliding_window": decoder.window is not None,  # of all layers or of none: it has no layer_types
        **({} if decoder.window is None else {"sliding_window": decoder.window}),
    }


MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    (*EMBEDDING, *NORMS, *ATTENTION, *_mixture("block_sparse_moe", "w1", "w3", "w2")),
    keys={"window": "sliding_window"},
    defaults={"rope_theta": 1e6, "sliding_window": None},
    read=_mixtral_experts,
    write=_write_mixtral,
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    (*EMBEDDING, *NORMS, *ATTENTION, *QK_NORM, *_mixture("mlp", "gate_proj", "up_proj", "down_proj")),
    traits={"qk_norm": True},
    keys={"ffn_hidden_size": "moe_intermediate_size"},
    only={"decoder_sparse_step": (1,), "mlp_only_layers": ([],), **qwen_windows.ONLY},
    read=_qwen_experts,
    write=_write_qwen,
)

FAMILIES = (MIXTRAL, QWEN3_MOE)

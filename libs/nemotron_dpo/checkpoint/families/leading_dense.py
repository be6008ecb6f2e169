"""Decoders whose first layers have a dense part, and whose others experts: what GLM-4.5 and DeepSeek-V3 have in common.

A router picks some experts, and one or several shared experts take every token. HF
names are on the right; the first `{}` is the layer number, the second the expert's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo.checkpoint.families import rope
from nemotron_dpo.checkpoint.families.dense import EMBEDDING, GATED_MLP, NORMS
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.hf_weights import Rule, copy, stack
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router, Score
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

_OURS, _THEIRS = "decoder.layers.{}.mlp.", "model.layers.{}.mlp."
_EXPERT = (f"{_OURS}experts.local_experts.{{}}.", f"{_THEIRS}experts.{{}}.")
_SHARED = (f"{_OURS}shared_experts.", f"{_THEIRS}shared_experts.")
# of all that is not attention
WEIGHTS: tuple[Rule, ...] = (
    *EMBEDDING,
    *NORMS,
    *GATED_MLP,
    copy(f"{_OURS}router.weight", f"{_THEIRS}gate.weight"),
    copy(f"{_OURS}router.expert_bias", f"{_THEIRS}gate.e_score_correction_bias", own_precision=True),
    *(
        rule
        for ours, theirs in (_EXPERT, _SHARED)
        for rule in (
            stack(f"{ours}linear_fc1.weight", f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight"),
            copy(f"{ours}linear_fc2.weight", f"{theirs}down_proj.weight"),
        )
    ),
)
_ALIASES = {  # of transformers 5
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}
_ONLY: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "moe_layer_freq": (1,)}
OF_SIGMOIDS: Mapping[str, tuple[Any, ...]] = {**_ONLY, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}
OF_SOFTMAX: Mapping[str, tuple[Any, ...]] = {
    **_ONLY,
    "scoring_func": ("softmax",),
    "topk_method": ("greedy",),
    "norm_topk_prob": (False,),
    "n_group": (1,),
    "topk_group": (1,),
}
_ROUTER = {  # fields of Router -> keys of config.json
    "num": "n_routed_experts",
    "top_k": "num_experts_per_tok",
    "renormalize": "norm_topk_prob",
    "scaling": "routed_scaling_factor",
    "num_groups": "n_group",
    "picked_groups": "topk_group",
}
_NULLABLE = ("q_lora_rank", "bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = ("num_hidden_layers", "intermediate_size", "moe_intermediate_size", "n_shared_experts", "n_routed_experts")
_COUNTS = ("num_experts_per_tok", "n_group", "topk_group")


def normal(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config under one name a setting, with `defaults`. Where null has a meaning of its own it is kept, else left out."""
    own = {key: value for key, value in config.items() if value is not None or key in _NULLABLE}
    for alias, key in _ALIASES.items():
        value = own.pop(alias, None)
        if value is not None and own.setdefault(key, value) != value:
            raise ValueError(f"{key} is {own[key]!r} and {alias} {value!r}")
    return {**defaults, **own}


def check_sizes(config: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raise ValueError where one of them is no positive integer."""
    for key in keys:
        if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 1:
            raise ValueError(f"{key} is {config[key]!r}")


def read(config: Mapping[str, Any], mixer: Sublayer, score: Score = "sigmoid") -> tuple[Layer, ...]:
    """The layers of a normal config, each with this `mixer`. A router of sigmoids has an expert bias, one of softmax none."""
    check_sizes(config, (*_SIZES, *_COUNTS))
    num, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    if isinstance(dense, bool) or not isinstance(dense, int) or not 0 <= dense < num:
        raise ValueError(f"first_k_dense_replace is {dense!r}, of {num} layers")
    leading, rest = Layer(mixer, Dense(config["intermediate_size"])), Layer(mixer, _experts(config, score))
    return (leading,) * dense + (rest,) * (num - dense)


def _experts(config: Mapping[str, Any], score: Score) -> Experts:
    own = float(config.get("aux_loss_alpha", config.get("router_aux_loss_coef", 0.0)))
    named = {field: config[key] for field, key in _ROUTER.items()}
    router = Router(**named, aux_loss_coeff=own, score=score, expert_bias=score == "sigmoid")
    if router.num % router.num_groups or router.picked_groups > router.num_groups:
        raise ValueError(f"{router.picked_groups} of {router.num_groups} groups of {router.num} experts are picked")
    if router.top_k > router.num // router.num_groups * router.picked_groups:
        raise ValueError(f"{router.top_k} experts are picked, and the picked groups have fewer")
    size = config["moe_intermediate_size"]
    return Experts(router, Dense(size), Dense(size * config["n_shared_experts"]))


def write(architecture: Architecture) -> dict[str, Any]:
    """What config.json says of the layers beyond their mixers."""
    experts = architecture.layers[-1].feed_forward
    assert isinstance(experts, Experts)
    assert experts.shared is not None
    dense = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Dense)]
    size, coeff = experts.expert.ffn_hidden_size, experts.router.aux_loss_coeff
    return {
        "num_hidden_layers": len(architecture.layers),
        "first_k_dense_replace": len(dense),
        "intermediate_size": dense[0].ffn_hidden_size if dense else size,
        **{key: getattr(experts.router, field) for field, key in _ROUTER.items()},
        **({"aux_loss_alpha": coeff} if coeff else {}),
        "moe_intermediate_size": size,
        "n_shared_experts": experts.shared.ffn_hidden_size // size,
        "num_nextn_predict_layers": 0,
    }


def read_rotary(family: Family, config: Mapping[str, Any]) -> Rotary:
    """The positions that a normal config says."""
    return Rotary(*rope.read(family, config, Path("config.json")))


def write_rotary(rotary: Rotary | None, architecture: Architecture, family: Family) -> dict[str, Any]:
    """What config.json says of them."""
    assert rotary is not None
    return rope.written(rotary, family, architecture.max_position_embeddings)

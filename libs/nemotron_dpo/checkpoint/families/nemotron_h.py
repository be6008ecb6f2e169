"""Nemotron-H, Nemotron Nano v2, Nemotron-3-Nano: layers of one sublayer each, in any order. config.json <-> layers.

A layer is a recurrence (M), attention without positions (*), a dense part (-) or experts (E), each without a gate and with
squared ReLU. NVIDIA's files say the order as a pattern of these letters, transformers 5 as a list of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.layer_letters import build_layers, layer_kinds, pattern_of
from nemotron_dpo.checkpoint.families.nemotron_h_weights import WEIGHTS
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.mamba import Mamba
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

_NAMES = {  # of a layer in transformers 5, and in its earlier versions
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}
# what transformers takes where config.json has no such key
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "max_position_embeddings": 4096,
    "layer_norm_epsilon": 1e-5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "chunk_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}
_SIZES = tuple(key for key, value in _DEFAULTS.items() if type(value) is int)
_ALIASES = {  # names that other tools write -> transformers' own
    "attention_head_dim": "head_dim",
    "mamba_chunk_size": "chunk_size",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_limit": "time_step_limit",
    "mamba_n_groups": "n_groups",
    "num_local_experts": "n_routed_experts",
    "rms_norm_eps": "layer_norm_epsilon",
    "layer_types": "layers_block_type",
}
# fields of sublayers -> keys of config.json
_MAMBA = {
    "num_heads": "mamba_num_heads",
    "head_size": "mamba_head_dim",
    "state_size": "ssm_state_size",
    "num_groups": "n_groups",
    "conv_width": "conv_kernel",
    "chunk_size": "chunk_size",
}
_ATTENTION = {"num_heads": "num_attention_heads", "num_groups": "num_key_value_heads", "head_size": "head_dim"}
_ROUTER = {
    "num": "n_routed_experts",
    "top_k": "num_experts_per_tok",
    "renormalize": "norm_topk_prob",
    "scaling": "routed_scaling_factor",
    "num_groups": "n_group",
    "picked_groups": "topk_group",
}
# megatron-core fixes the gated norm's epsilon, where transformers takes the model's
_EPSILON = 1e-5
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "mlp_hidden_act": ("relu2",),
    "hidden_act": ("relu2", "silu"),  # which nothing of the model reads
    "mamba_hidden_act": ("silu",),
    "use_bias": (False,),
    "mamba_proj_bias": (False,),
    "use_conv_bias": (True,),
    "residual_in_fp32": (False,),
    "sliding_window": (),
    "tie_word_embeddings": (False,),  # transformers does not tie them, whatever is said
    "layer_norm_epsilon": (_EPSILON,),
    "moe_latent_size": (),
    "n_shared_experts": (1,),
}


def normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config under transformers' names, with its defaults. Raises UserError where two names of one setting disagree."""
    own = {key: value for key, value in config.items() if value is not None}
    for alias, key in _ALIASES.items():
        value = own.pop(alias, None)
        if value is not None and own.setdefault(key, value) != value:
            raise UserError(f"{key} is {own[key]!r} and {alias} {value!r}", remedy="leave the right one")
    return {**_DEFAULTS, **own}


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    kinds = _kinds(config)
    for key in _SIZES:
        if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 1:
            raise ValueError(f"{key} is {config[key]!r}")
    _refuse_limit(config.get("time_step_limit"))
    made = {
        "M": lambda: Layer(_mamba(config), None),
        "*": lambda: Layer(_attention(config), None),
        "-": lambda: Layer(None, Dense(config["intermediate_size"], "relu2", gated=False)),
        "E": lambda: Layer(None, _experts(config)),
    }
    return build_layers(kinds, made)


def _kinds(config: Mapping[str, Any]) -> str:
    """The letters of the layers, where all that says them agrees."""
    listed, pattern = config.get("layers_block_type"), config.get("hybrid_override_pattern")
    if listed is None and pattern is None:
        raise KeyError("hybrid_override_pattern")
    said = []
    if listed is not None:
        if unknown := [name for name in listed if name not in _NAMES]:
            raise UserError(f"layers of {unknown[0]} are not supported", remedy=f"{', '.join(_NAMES)} are")
        said.append("".join(_NAMES[name] for name in listed))
    if pattern is not None:
        said.append(layer_kinds(pattern))
    count = config.get("num_hidden_layers", len(said[0]))
    if said[0] != said[-1] or count != len(said[0]):
        what = f"names {len(said[0])} layers"
        other = f"num_hidden_layers {count}" if said[0] == said[-1] else "others in hybrid_override_pattern"
        raise UserError(f"{what}, and {other}", remedy="leave the right ones")
    return said[0]


def _refuse_limit(limit: Any) -> None:
    """Refuse bounds of the recurrence's time step: Megatron has none. JSON has no infinity, and transformers writes it so."""
    infinite = (None, float("inf"), "Infinity", {"__float__": "Infinity"})
    if limit is not None and (len(limit) != 2 or limit[0] != 0 or limit[1] not in infinite):
        raise UserError(f"time_step_limit {list(limit)} is not supported", remedy="[0.0, Infinity] is")


def _mamba(config: Mapping[str, Any]) -> Mamba:
    _check_divides(config, "n_groups", "mamba_num_heads")
    return Mamba(**_named(config, _MAMBA), eps=_EPSILON)


def _attention(config: Mapping[str, Any]) -> Attention:
    _check_divides(config, "num_key_value_heads", "num_attention_heads")
    return Attention(**_named(config, _ATTENTION), rotary=None)


def _experts(config: Mapping[str, Any]) -> Experts:
    own = float(config.get("router_aux_loss_coef", 0.0))  # transformers knows no auxiliary loss of this family
    router = Router(**_named(config, _ROUTER), aux_loss_coeff=own, score="sigmoid", expert_bias=True)
    _check_divides(config, "n_group", "n_routed_experts")
    if router.top_k > router.num:
        raise ValueError(f"{router.top_k} of {router.num} experts are picked")
    expert, shared = config["moe_intermediate_size"], config["moe_shared_expert_intermediate_size"]
    return Experts(router, Dense(expert, "relu2", gated=False), Dense(shared, "relu2", gated=False))


def _named(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {field: config[key] for field, key in keys.items()}


def _check_divides(config: Mapping[str, Any], groups: str, whole: str) -> None:
    if config[whole] % config[groups]:
        raise ValueError(f"{whole} {config[whole]} is no multiple of {groups} {config[groups]}")


def _write(architecture: Architecture) -> dict[str, Any]:
    """The pattern, which NVIDIA's code and transformers read, and the sizes of those kinds of layers that there are."""
    pattern = pattern_of(architecture)
    always = {"mlp_hidden_act": "relu2", "attention_bias": False, "mlp_bias": False, "num_nextn_predict_layers": 0}
    written = {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern), **always}
    for layer in dict.fromkeys(architecture.layers):
        for sublayer in layer.sublayers:
            written |= _written(sublayer)
    return written


def _written(sublayer: Sublayer) -> dict[str, Any]:
    if isinstance(sublayer, Mamba):
        return {key: getattr(sublayer, field) for field, key in _MAMBA.items()}
    if isinstance(sublayer, Attention):
        return {key: getattr(sublayer, field) for field, key in _ATTENTION.items()}
    if isinstance(sublayer, Dense):
        return {"intermediate_size": sublayer.ffn_hidden_size}
    assert isinstance(sublayer, Experts)
    assert sublayer.shared is not None
    router, coeff = sublayer.router, sublayer.router.aux_loss_coeff
    return {
        **{key: getattr(router, field) for field, key in _ROUTER.items()},
        **({"router_aux_loss_coef": coeff} if coeff else {}),
        "moe_intermediate_size": sublayer.expert.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": sublayer.shared.ffn_hidden_size,
    }


NEMOTRON_H = Family(
    "nemotron_h",
    "NemotronHForCausalLM",
    WEIGHTS,
    keys={"norm_epsilon": "layer_norm_epsilon"},
    only=_ONLY,
    layered=Layered(normal, _read, _write),
    prefixes=("backbone.", "model."),
)
FAMILIES = (NEMOTRON_H,)

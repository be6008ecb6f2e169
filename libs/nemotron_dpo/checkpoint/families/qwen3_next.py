"""Qwen3-Next: gated delta nets, every fourth layer attention with an output gate; experts, or a dense part.

config.json <-> layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_dpo.checkpoint.families import rope
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.qwen3_next_weights import WEIGHTS
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.policy.sublayers.sublayer import Sublayer

LINEAR, FULL = "linear_attention", "full_attention"
INTERVAL = 4  # every how manyth layer is attention where config.json does not list them
# what transformers takes where config.json has no such key
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.001,
    "mlp_only_layers": (),
    "tie_word_embeddings": False,
}
# fields of sublayers -> keys of config.json
DELTA = {
    "num_key_heads": "linear_num_key_heads",
    "num_value_heads": "linear_num_value_heads",
    "key_size": "linear_key_head_dim",
    "value_size": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
    "eps": "rms_norm_eps",
}
ATTENTION = {"num_heads": "num_attention_heads", "num_groups": "num_key_value_heads", "head_size": "head_dim"}
_ROUTER = {"num": "num_experts", "top_k": "num_experts_per_tok", "renormalize": "norm_topk_prob"}


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> dict[str, Any]:
    """The config with transformers' defaults, and its layers listed. Raises ValueError where a size is none."""
    found = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    _check_sizes(found, defaults)
    return found | {"layer_types": _layer_types(found)}


def _check_sizes(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError where what has a whole number for its default is no positive one; a model may have no experts."""
    for key in (key for key, value in defaults.items() if type(value) is int):
        value = config[key]
        if type(value) is not int or value < (0 if key == "num_experts" else 1):
            raise ValueError(f"{key} is {value!r}")
    for groups, whole in (("linear_num_key_heads", "linear_num_value_heads"), ("num_key_value_heads", "num_attention_heads")):
        if config[whole] % config[groups]:
            raise ValueError(f"{whole} {config[whole]} is no multiple of {groups} {config[groups]}")


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    """What mixes tokens in each layer. Raises UserError where it is of another kind, or not of all layers."""
    number, listed = config["num_hidden_layers"], config.get("layer_types")
    if listed is None:  # transformers reads the list where there is one, and the interval for want of it
        every = config.get("full_attention_interval", INTERVAL)
        if type(every) is not int or every < 1:
            raise ValueError(f"full_attention_interval is {every!r}")
        return [FULL if place % every == 0 else LINEAR for place in range(1, number + 1)]
    if unknown := sorted(set(listed) - {LINEAR, FULL}):
        raise UserError(f"layers of {', '.join(unknown)} are not supported", remedy=f"{LINEAR} and {FULL} are")
    if len(listed) != number:
        raise UserError(
            f"layer_types names {len(listed)} layers, and num_hidden_layers {number}", remedy="leave the right ones"
        )
    return list(listed)


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    mixers = read_mixers(config, QWEN3_NEXT)
    return tuple(Layer(mixer, _feed_forward(config, number)) for number, mixer in enumerate(mixers))


def read_mixers(config: Mapping[str, Any], family: Family) -> list[Sublayer]:
    """What mixes tokens in each layer; one of a kind that does not occur is not made."""
    theta, percent, scaling = rope.read(family, config, None)
    made: dict[str, Sublayer] = {}
    for kind in dict.fromkeys(config["layer_types"]):
        if kind == LINEAR:
            made[kind] = GatedDelta(**{field: config[key] for field, key in DELTA.items()})
        else:
            sizes = {field: config[key] for field, key in ATTENTION.items()}
            made[kind] = Attention(**sizes, rotary=Rotary(theta, percent, scaling), qk_norm=True, gated=True)
    return [made[kind] for kind in config["layer_types"]]


def _feed_forward(config: Mapping[str, Any], number: int) -> Sublayer:
    """transformers counts layers from one where it asks for every manyth, and from zero where a list names them."""
    is_sparse = config["num_experts"] > 0 and (number + 1) % config["decoder_sparse_step"] == 0
    if number in config["mlp_only_layers"] or not is_sparse:
        return Dense(config["intermediate_size"])
    return read_experts(config, _ROUTER)


def read_experts(config: Mapping[str, Any], keys: Mapping[str, str]) -> Experts:
    """Experts and the shared one with its gate."""
    own = float(config["router_aux_loss_coef"])
    router = Router(**{field: config[key] for field, key in keys.items()}, aux_loss_coeff=own)
    if router.top_k > router.num:
        raise ValueError(f"{router.top_k} of {router.num} experts are picked")
    expert, shared = (Dense(config[key]) for key in ("moe_intermediate_size", "shared_expert_intermediate_size"))
    return Experts(router, expert, shared, shared_gate=True)


def _write(architecture: Architecture) -> dict[str, Any]:
    """The sizes of those kinds of layers that there are, under the names of all versions of transformers."""
    feed_forwards = [layer.feed_forward for layer in architecture.layers]
    dense = [number for number, part in enumerate(feed_forwards) if not isinstance(part, Experts)]
    written = {"num_experts": 0, **write_mixers(architecture, QWEN3_NEXT)}
    for part in dict.fromkeys(feed_forwards):
        if isinstance(part, Experts):
            written |= {**write_experts(part), "norm_topk_prob": part.router.renormalize}
        elif isinstance(part, Dense):
            written |= {"intermediate_size": part.ffn_hidden_size}
    return {**written, "decoder_sparse_step": 1, "mlp_only_layers": dense}


def write_mixers(architecture: Architecture, family: Family) -> dict[str, Any]:
    """What config.json says of the layers that mix tokens, and of positions."""
    mixers = [layer.mixer for layer in architecture.layers]
    written: dict[str, Any] = {
        "hidden_act": "silu",
        "attention_bias": False,
        "num_hidden_layers": len(mixers),
        "layer_types": [FULL if isinstance(mixer, Attention) else LINEAR for mixer in mixers],
        **_interval(mixers),
    }
    for mixer in dict.fromkeys(mixers):
        keys = ATTENTION if isinstance(mixer, Attention) else DELTA
        written |= {key: getattr(mixer, field) for field, key in keys.items()}
        if isinstance(mixer, Attention) and mixer.rotary is not None:
            written |= rope.written(mixer.rotary, family, architecture.max_position_embeddings)
    return written


def _interval(mixers: Sequence[Sublayer | None]) -> dict[str, int]:
    """Every how manyth layer is attention, where that says it all: Megatron-Bridge reads this in the place of the list."""
    full = [number for number, mixer in enumerate(mixers, 1) if isinstance(mixer, Attention)]
    every = full[0] if full else len(mixers) + 1
    is_all = full == [number for number in range(1, len(mixers) + 1) if number % every == 0]
    return {"full_attention_interval": every} if is_all else {}


def write_experts(experts: Experts) -> dict[str, Any]:
    """What config.json says of experts."""
    assert experts.shared is not None
    return {
        "num_experts": experts.router.num,
        "num_experts_per_tok": experts.router.top_k,
        "moe_intermediate_size": experts.expert.ffn_hidden_size,
        "shared_expert_intermediate_size": experts.shared.ffn_hidden_size,
        "router_aux_loss_coef": experts.router.aux_loss_coeff or 0.0,
        "output_router_logits": False,
    }


QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    WEIGHTS,
    traits={"zero_centered_norm": True},
    defaults={"partial_rotary_factor": 0.25},
    layered=Layered(with_defaults, _read, _write),
    lost_in_peft=("gate_proj", "up_proj", "down_proj"),
)
FAMILIES = (QWEN3_NEXT,)

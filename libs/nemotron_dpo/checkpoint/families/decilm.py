"""Llama-Nemotron Super and Ultra (DeciLM): Llama, some of whose layers have no attention, no feed-forward part or other sizes.

config.json lists them as `block_configs`. transformers has no code of it: NVIDIA's comes with its models, and is not run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, GATED_MLP, NORMS
from nemotron_dpo.checkpoint.families.family import Family, Layered
from nemotron_dpo.checkpoint.families.leading_dense import check_sizes, read_rotary, write_rotary
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense

_MULTIPLE = 256  # of which the size of a feed-forward part is, where it is said as a factor
# of a block's two sections, what is read; anything else that says something is refused
_READ = {"attention": ("no_op", "n_heads_in_group"), "ffn": ("no_op", "ffn_mult", "intermediate_size")}
_CODE = {  # how NVIDIA's files call their own code, which has to lie beside what we write
    "AutoConfig": "configuration_decilm.DeciLMConfig",
    "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in config.items() if value is not None}
    return {"head_dim": named["hidden_size"] // named["num_attention_heads"], "rms_norm_eps": 1e-6, **named}


def _read(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    check_sizes(config, ("num_hidden_layers", "num_attention_heads", "head_dim"))
    blocks, num = config["block_configs"], config["num_hidden_layers"]
    if len(blocks) != num:
        raise ValueError(f"block_configs names {len(blocks)} layers, and num_hidden_layers {num}")
    layers = tuple(Layer(_attention(config, _section(b, "attention")), _dense(config, _section(b, "ffn"))) for b in blocks)
    if all(len(layer.sublayers) == 1 for layer in layers):  # a checkpoint would name them as a hybrid's
        raise UserError("layers of one part each are not supported", remedy="some with two are")
    return layers


def _section(block: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section: Mapping[str, Any] = block[name]
    unread = [
        key for key, value in section.items() if key not in _READ[name] and value and (key, value) != ("hidden_act", "silu")
    ]
    if unread:
        what = f"{unread[0]} {section[unread[0]]!r} of a block's {name} is not supported"
        raise UserError(what, remedy=f"{' and '.join(_READ[name])} are")
    return section


def _attention(config: Mapping[str, Any], said: Mapping[str, Any]) -> Attention | None:
    if said.get("no_op"):
        return None
    check_sizes(said, ("n_heads_in_group",))
    heads, together = config["num_attention_heads"], said["n_heads_in_group"]
    if heads % together:
        raise ValueError(f"{heads} heads are no groups of {together}")
    return Attention(heads, heads // together, config["head_dim"], read_rotary(LLAMA_NEMOTRON, config))


def _dense(config: Mapping[str, Any], said: Mapping[str, Any]) -> Dense | None:
    if said.get("no_op"):
        return None
    if said.get("intermediate_size"):
        check_sizes(said, ("intermediate_size",))
        return Dense(said["intermediate_size"])
    return Dense(_size(float(said["ffn_mult"]), config["hidden_size"]))


def _size(factor: float, hidden: int) -> int:
    """The channels that NVIDIA's code makes of a factor. Raises ValueError where there are none."""
    size = int(2 * factor * hidden / 3)
    if size < 1:
        raise ValueError(f"ffn_mult is {factor}")
    return -(-size // _MULTIPLE) * _MULTIPLE


def _write(architecture: Architecture) -> dict[str, Any]:
    attention, hidden = architecture.attentions[0], architecture.hidden_size
    return {
        "auto_map": _CODE,
        "block_configs": [_block(layer, hidden) for layer in architecture.layers],
        "head_dim": attention.head_size,
        "hidden_act": "silu",
        "intermediate_size": None,
        "num_attention_heads": attention.num_heads,
        "num_hidden_layers": len(architecture.layers),
        "num_key_value_heads": None,
        **write_rotary(attention.rotary, architecture, LLAMA_NEMOTRON),
    }


def _block(layer: Layer, hidden: int) -> dict[str, Any]:
    attention, dense = layer.mixer, layer.feed_forward
    heads = {"n_heads_in_group": attention.num_heads // attention.num_groups} if isinstance(attention, Attention) else {}
    ffn: dict[str, Any] = {}
    if isinstance(dense, Dense):
        factor = 3 * dense.ffn_hidden_size / (2 * hidden)
        fits = _size(factor, hidden) == dense.ffn_hidden_size
        ffn = {"ffn_mult": factor} if fits else {"intermediate_size": dense.ffn_hidden_size}
    always = {"replace_with_linear": False}
    return {
        "attention": {"n_heads_in_group": None, "no_op": attention is None, **always, **heads},
        "ffn": {"ffn_mult": None, "no_op": dense is None, **always, **ffn},
    }


LLAMA_NEMOTRON = Family(
    "nemotron-nas",
    "DeciLMForCausalLM",
    (*EMBEDDING, *NORMS, *ATTENTION, *GATED_MLP),
    layered=Layered(_normal, _read, _write),
)
FAMILIES = (LLAMA_NEMOTRON,)

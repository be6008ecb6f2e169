"""The architecture of a Megatron-LM checkpoint, from its command line's arguments: a Namespace in the common state.

Where a user also names the Hugging Face model, the arguments must agree with it. The vocabulary's size without Megatron-LM's
padding and the special tokens come from that model. Without arguments the whole architecture does.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dpo.checkpoint import untrusted
from nemotron_dpo.checkpoint.families import FAMILIES
from nemotron_dpo.checkpoint.provider import beside_provider, from_provider
from nemotron_dpo.checkpoint.provider_parts import symbol
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.uniform import flat

_FROM_HF = ("family", "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "experts")
_MUST_AGREE = (*_SIZES, "normalization", "activation", "gated", "qkv_bias", "qk_norm", "tied_embeddings", "rotary_base")
_RENAMED = {  # provider field -> argument
    "add_qkv_bias": "add_qkv_bias",
    "layernorm_epsilon": "norm_epsilon",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "num_moe_experts": "num_experts",
    "rope_scaling": "use_rope_scaling",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "seq_length": "max_position_embeddings",
}


def describes(folder: Path) -> bool:
    """Whether the iteration folder holds Megatron-LM's arguments."""
    return (folder / ".metadata").is_file() and "args" in untrusted.check(folder)[1]


def read(folder: Path, named: Architecture | None) -> Architecture:
    """The architecture of an iteration folder. `named` is that of the Hugging Face model, where a user named one.

    Raises UserError where the two disagree, where there is neither, or where the arguments need what is not supported.
    """
    _, common = untrusted.check(folder)
    arguments = common.get("args")
    if not isinstance(arguments, Namespace):
        if named is None:
            raise UserError("holds no arguments of Megatron-LM", source=folder, remedy="name its Hugging Face model")
        return named
    if named is not None and not named.is_hybrid and (len(set(named.layers)) > 1 or beside_provider(named)):
        what = f"Megatron-LM's arguments describe no {named.family} model, as the named Hugging Face model is"
        raise UserError(what, source=folder, remedy="name the model whose weights it holds")
    extra = {} if named is None else {"family": named.family, "embedding_scale": named.embedding_scale}
    try:
        stored = from_provider(_provider(vars(arguments)), extra)
    except UserError as error:
        error.source = error.source or str(folder)
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"its arguments describe no model ({type(error).__name__}: {error})", source=folder) from None
    return stored if named is None else replace(_agreed(stored, named, folder), around=named.around)


def _agreed(stored: Architecture, named: Architecture, folder: Path) -> Architecture:
    if FAMILIES[named.family].layered is not None or not stored.is_uniform:
        return _agreed_by_layer(stored, named, folder)
    pair = flat(stored), flat(named)
    for field in _MUST_AGREE:
        here, there = (getattr(decoder, field) for decoder in pair)
        if here != there:
            what = f"{field} is {here} in the checkpoint and {there} in the Hugging Face model"
            raise UserError(what, source=folder, remedy="name the model whose weights it holds")
    return replace(stored, **{name: getattr(named, name) for name in _FROM_HF})


def _agreed_by_layer(stored: Architecture, named: Architecture, folder: Path) -> Architecture:
    pairs = zip(stored.layers, named.layers, strict=False)
    differing = next((number for number, (here, there) in enumerate(pairs) if here != there), None)
    if differing is not None or len(stored.layers) != len(named.layers) or stored.hidden_size != named.hidden_size:
        where = "their sizes" if differing is None else f"layer {differing}"
        what = f"the checkpoint and the Hugging Face model differ in {where}"
        raise UserError(what, source=folder, remedy="name the model whose weights it holds")
    return replace(named, dtype=stored.dtype)


def _provider(arguments: dict[str, Any]) -> dict[str, Any]:
    """Megatron-LM's arguments as provider fields of the same meaning. Arguments with a provider's name are kept as they are."""
    get = arguments.get
    if get("heterogeneous_layers_config_path"):
        raise UserError("heterogeneous_layers_config_path is not supported")
    gated, squared = bool(get("swiglu")), bool(get("squared_relu"))
    activation = "torch.nn.functional.silu" if gated else "megatron.core.activations.squared_relu"
    positions = "rope" if get("use_rotary_position_embeddings") else get("position_embedding_type", "learned_absolute")
    return {
        **arguments,
        **{field: arguments[name] for field, name in _RENAMED.items() if name in arguments},
        "activation_func": symbol(activation if gated or squared else "torch.nn.functional.gelu"),
        "gated_linear_unit": gated,
        "normalization": get("normalization", "LayerNorm"),
        "num_query_groups": get("num_query_groups") if get("group_query_attention") else None,
        "params_dtype": symbol(str(get("params_dtype"))),
        "position_embedding_type": positions,
        "rope_scaling_factor": get("rope_scaling_factor", 8.0),
        "share_embeddings_and_output_weights": not get("untie_embeddings_and_output_weights"),
        "vocab_size": get("padded_vocab_size") or get("vocab_size"),
    }

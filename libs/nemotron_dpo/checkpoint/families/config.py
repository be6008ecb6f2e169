"""config.json <-> Architecture, for every family. A setting that changes the model and is not honoured is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nemotron_dpo import hf_folder, machine_errors
from nemotron_dpo.checkpoint import mxfp4
from nemotron_dpo.checkpoint.families import FAMILIES, rope
from nemotron_dpo.checkpoint.families.family import USUAL_KEYS, Family
from nemotron_dpo.checkpoint.families.known import REASONS
from nemotron_dpo.checkpoint.families.wrappers import TIED, WRAPPERS, text_of, ties
from nemotron_dpo.checkpoint.field_kinds import checked
from nemotron_dpo.checkpoint.sizes import refuse_absurd
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.uniform import UniformDecoder, flat

_DTYPES = ("bfloat16", "float32", "float16")
# keys that change what a model computes, and the values that are honoured; an absent key and null always are
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "quantization_config": (),
    "compression_config": (),
    "transformers_weights": (),
    "text_config": (),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
}
_NUMBERS = frozenset(  # fields of UniformDecoder
    (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "vocab_size",
        "max_position_embeddings",
        "window",
    )
)
_FRACTIONS = frozenset(("norm_epsilon", "attention_scale", "embedding_scale", "residual_scale", "logits_divisor"))
_OF_ALL_LAYERS = frozenset(field.name for field in fields(Architecture))


def read(folder: Path) -> Architecture:
    """Read the architecture of an HF folder. Raises UserError where config.json is damaged or of an unknown kind."""
    path = folder / "config.json"
    try:
        with machine_errors.named(path):
            content = path.read_bytes()
        return from_config(hf_folder.parsed_config(content), path, folder)
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy="is the download complete?") from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", source=path) from None


def from_config(config: Mapping[str, Any], path: Path, folder: Path | None = None) -> Architecture:
    """The architecture that the content of the file `path` describes, of weights in `folder`.

    Raises UserError where it is of an unknown kind.
    """
    try:
        refuse_absurd(config)
        if config["model_type"] not in WRAPPERS:
            return checked(_architecture(_family(config, path), config, path))
        text = text_of(_settled(config, folder))
        return checked(replace(_architecture(_family(text, path), text, path), around=config["model_type"]))
    except UserError as error:
        error.source = error.source or str(path)
        raise
    except KeyError as error:
        raise UserError(f"lacks {error}", source=path, remedy="is the download complete?") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"does not describe a model ({error})", source=path) from None


def _settled(config: Mapping[str, Any], folder: Path | None) -> Mapping[str, Any]:
    """A wrapper's `config`, which says whether output layer and embedding are one; where it does not, the folder's weights do.

    So it is in transformers 5. transformers 4 saved wrappers whose sections contradict each other, or say nothing.
    """
    if folder is None or len(ties(config)) == 1:
        return config
    try:
        stored = hf_folder.stored_names(folder)
    except UserError:  # whoever reads the weights says what is wrong with them
        return config
    return {**config, TIED: not any(name.endswith("lm_head.weight") for name in stored)}


def write(architecture: Architecture) -> dict[str, Any]:
    """The content of config.json. Raises UserError where the family has no such model."""
    family = FAMILIES[architecture.family]
    keys = {**USUAL_KEYS, **family.keys}
    return {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "attention_dropout": 0.0,
        "dtype": architecture.dtype,
        "torch_dtype": architecture.dtype,
        **(_written_layers(architecture, family, keys) if family.layered else _written_decoder(architecture, family, keys)),
    }


def _written_decoder(architecture: Architecture, family: Family, keys: Mapping[str, str]) -> dict[str, Any]:
    decoder = flat(architecture)
    only = {key: values[0] for key, values in {"hidden_act": _ONLY["hidden_act"], **family.only}.items()}
    own = {key: getattr(decoder, name) for name, key in keys.items()}
    return {**own, **only, **rope.write(decoder, family), **family.write(decoder)}


def _written_layers(architecture: Architecture, family: Family, keys: Mapping[str, str]) -> dict[str, Any]:
    assert family.layered is not None
    own = {key: getattr(architecture, name) for name, key in keys.items() if name in _OF_ALL_LAYERS}
    only = {key: values[0] for key, values in family.only.items() if values}
    return {**own, **only, **family.layered.write(architecture)}


def _family(config: Mapping[str, Any], path: Path) -> Family:
    kind = config["model_type"]
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in REASONS:
        raise UserError(f"model_type {kind!r} is not supported: {REASONS[kind]}", source=path)
    raise UserError(f"model_type {kind!r} is not supported", source=path, remedy=f"{', '.join(FAMILIES)} are")


def _architecture(family: Family, config: Mapping[str, Any], path: Path) -> Architecture:
    if family.layered is not None:
        return _layered(family, family.layered.normal(config), path)
    _refuse_unhonoured(family, config, path)
    heads = config["num_attention_heads"]
    with_defaults = {
        "num_key_value_heads": heads,
        "head_dim": config["hidden_size"] // heads,
        "tie_word_embeddings": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **family.defaults,
        **{key: value for key, value in config.items() if value is not None or key == "sliding_window"},
    }
    keys = {**USUAL_KEYS, **family.keys}
    _check_numbers(with_defaults, keys)
    theta, percent, scaling = rope.read(family, config, path)
    return UniformDecoder(
        **{name: with_defaults[key] for name, key in keys.items()},
        dtype=_dtype(config, path),
        family=family.model_type,
        rotary_base=theta,
        rotary_percent=percent,
        rope_scaling=scaling,
        **family.traits,
        **family.read(config),
    ).architecture


def _layered(family: Family, config: Mapping[str, Any], path: Path) -> Architecture:
    assert family.layered is not None
    _refuse_unhonoured(family, config, path)
    keys = {name: key for name, key in {**USUAL_KEYS, **family.keys}.items() if name in _OF_ALL_LAYERS}
    with_defaults = {**dict.fromkeys(keys.values()), "tie_word_embeddings": False, **config}
    _check_numbers(with_defaults, keys)
    return Architecture(
        layers=family.layered.read(config),
        **{**{name: with_defaults[key] for name, key in keys.items()}, **family.traits, **family.read(config)},
        dtype=_dtype(config, path),
        family=family.model_type,
    )


def _check_numbers(config: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Raise ValueError where a size is no positive integer, the norms' epsilon not positive, or a flag no boolean."""
    for name, key in keys.items():
        value = config[key]
        absent = name == "window" and value is None
        known = int if name in _NUMBERS else (int, float)
        counts = name in _NUMBERS | _FRACTIONS and not absent
        if counts and (isinstance(value, bool) or not isinstance(value, known) or not value > 0):
            raise ValueError(f"{key} is {value!r}")
        if name == "tied_embeddings" and not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}")


def _refuse_unhonoured(family: Family, config: Mapping[str, Any], path: Path) -> None:
    honoured = set(family.keys.values())
    limits = {key: values for key, values in _ONLY.items() if key not in honoured}
    for key, values in {**limits, **family.only}.items():
        value = config.get(key)
        if key == "quantization_config" and (hf_folder.float8_blocks(config) or (family.mxfp4 and mxfp4.is_named(value))):
            continue
        if value is not None and value not in values:
            remedy = (
                f"{family.model_type} models with {values[0]!r} are" if values else f"{family.model_type} models without are"
            )
            raise UserError(f"{key} {_shown(value)} is not supported", source=path, remedy=remedy)
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds and family.layered is None and not family.some_windows:
        raise UserError(f"layers of {', '.join(sorted(kinds))} are not supported", source=path, remedy="full_attention is")


def _shown(value: Any) -> str:
    return "of any kind" if isinstance(value, dict) else repr(value)


def _dtype(config: Mapping[str, Any], path: Path) -> str:
    """The dtype that the file states, float32 for "auto". The weights' headers are preferred (`hf_folder.precision`)."""
    said = config.get("dtype") or config.get("torch_dtype") or "auto"
    dtype = said.removeprefix("torch.") if isinstance(said, str) else said
    if dtype == "auto":
        return "float32"
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported", source=path, remedy=f"one of {', '.join(_DTYPES)} is")
    return dtype

"""What describes one Hugging Face model family: its config keys, its fixed traits and its table of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.checkpoint.hf_weights import Rule
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.uniform import UniformDecoder

# field of UniformDecoder -> key of config.json, as most architectures call it
USUAL_KEYS: Mapping[str, str] = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}


@dataclass(frozen=True)
class Layered:
    """How a family whose layers differ is read and written.

    normal: a config under transformers' own names of today, with its defaults. read: its layers, from a normal config.
    write: what config.json says of them.
    """

    normal: Callable[[Mapping[str, Any]], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], tuple[Layer, ...]]
    write: Callable[[Architecture], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    weights: the table of its parameters, without the output layer.
    traits: fields of UniformDecoder that all its models share.
    keys: fields whose key in config.json differs from USUAL_KEYS, or is not among them.
    defaults: what transformers takes where config.json has no such key.
    only: keys of config.json with the values that are honoured; the first is the one that is written.
    read, write: whatever the above does not say, as fields of UniformDecoder from a config, and back.
    layered: in place of `write`, where layers differ; `read` gives fields of Architecture then.
    some_windows: `layer_types` of its configs says which layers have the window.
    mxfp4: its experts may be stored in 4 bits, which are read as bfloat16.
    prefixes: what names of tensors begin with, and those of transformers' modules in its place, where the two differ.
    lost_in_peft: modules that peft takes for those of experts, which transformers has in one tensor: it leaves them out.
    """

    model_type: str
    hf_class: str
    weights: tuple[Rule, ...]
    traits: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write: Callable[[UniformDecoder], dict[str, Any]] = lambda decoder: {}
    layered: Layered | None = None
    some_windows: bool = False
    mxfp4: bool = False
    prefixes: tuple[str, str] = ("", "")
    lost_in_peft: tuple[str, ...] = ()

    @property
    def partial_rotary(self) -> bool:
        """Whether its models may rotate only a part of each head."""
        return "partial_rotary_factor" in self.defaults

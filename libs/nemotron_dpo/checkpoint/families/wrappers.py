"""Multimodal models around a text model of a family that is known: their config.json and the names of their tensors.

The text model alone is read and trained. Its positions are those of a text: where a wrapper has an axis for each direction of a
picture (`mrope`), the axes of a text are one, and the sections that divide a head among them say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.errors import UserError

TIED = "tie_word_embeddings"
# keys that count beside text_config, and replace what is within
_PRECISION, _QUANTIZED = ("dtype", "torch_dtype"), ("quantization_config", "compression_config")
_OUTER = (*_PRECISION, *_QUANTIZED, "transformers_weights", "bos_token_id", "eos_token_id", "pad_token_id")
_ROPE = ("rope_scaling", "rope_parameters")
_MROPE = ("mrope_section", "mrope_interleaved")


@dataclass(frozen=True)
class Wrapper:
    """What is around a text model.

    texts: the model_type that text_config has there -> the family that it is; the first where it has none.
    renamed: what names of the text model's tensors begin with there, and what in a text model; those that are written first.
    module: what names of the text model's modules begin with in transformers, in the place of `model.`.
    rest: what names of all other tensors begin with, without `model.`. They are carried through unchanged.
    rest_prefix: what is written before these; versions of transformers differ in whether that is `model.` or nothing.
    flat: config.json may have the keys of text_config beside vision_config, as in older files.
    defaults: family -> what text_config has where it says nothing.
    """

    texts: Mapping[str, str]
    renamed: tuple[tuple[str, str], ...]
    module: str
    rest: tuple[str, ...]
    rest_prefix: str = ""
    flat: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def text_name(self, stored: str) -> str:
        """The name that a tensor has in a text model; unchanged where it is none of it."""
        if self.is_rest(stored):
            return stored
        fitting = [pair for pair in self.renamed if stored.startswith(pair[0])]
        theirs, ours = max(fitting, key=lambda pair: len(pair[0]), default=("", ""))
        return ours + stored.removeprefix(theirs)

    def stored_name(self, name: str) -> str:
        """The inverse of `text_name`."""
        theirs, ours = next((pair for pair in self.renamed if name.startswith(pair[1])), ("", ""))
        return theirs + name.removeprefix(ours)

    def rest_name(self, stored: str) -> str:
        """The name under which a tensor of the rest is written."""
        return self.rest_prefix + stored.removeprefix("model.")

    def is_rest(self, stored: str) -> bool:
        """Whether a tensor of this name is none of the text model."""
        return stored.removeprefix("model.").startswith(self.rest)


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the text model alone within `config`, that of one of WRAPPERS, under its family's model_type.

    Raises UserError where that is none that is known there.
    """
    wrapper, text = WRAPPERS[config["model_type"]], _section(config)
    kind = text.get("model_type") or next(iter(wrapper.texts))
    if kind not in wrapper.texts:
        what = f"a {config['model_type']} around a {kind!r} is not supported"
        raise UserError(what, remedy=f"around {', '.join(wrapper.texts)} it is")
    family = wrapper.texts[kind]
    outer = {key: config[key] for key in _OUTER if config.get(key) is not None}
    said = ties(config)
    merged = {**wrapper.defaults.get(family, {}), **text, **outer, **({TIED: said[0]} if said else {}), "model_type": family}
    return {**merged, **_plain_positions(merged)}


def ties(config: Mapping[str, Any]) -> list[bool]:
    """What `config` says of whether the output layer is the embedding, no two alike. transformers 4 read it in the section."""
    said = (config.get(TIED), _section(config).get(TIED))
    return list(dict.fromkeys(each for each in said if each is not None))


def with_text(config: Mapping[str, Any], *, dtype: str, tied: bool) -> dict[str, Any]:
    """`config` around plain weights in this precision, tied or not; its every other key is as it was."""
    whole = _about_weights(config, dtype)
    if not any(key in whole for key in _PRECISION):
        whole |= dict.fromkeys(_PRECISION, dtype)
    if config.get("text_config") is not None:
        whole["text_config"] = _about_weights(config["text_config"], dtype)
    if ties(config) != [tied]:
        whole[TIED] = tied
        if TIED in (whole.get("text_config") or {}):
            whole["text_config"][TIED] = tied
    return whole


def _about_weights(section: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    kept = {key: value for key, value in section.items() if key not in _QUANTIZED}
    return {**kept, **{key: dtype for key in _PRECISION if key in kept}}


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the text model: a section, or, where it may be flat, the whole but for the other section."""
    section = config.get("text_config")
    if isinstance(section, Mapping):
        return section
    if section is not None or not WRAPPERS[config["model_type"]].flat:
        raise ValueError(f"text_config is {section!r}")
    return {key: value for key, value in config.items() if key not in ("model_type", "architectures", "vision_config")}


def _plain_positions(text: Mapping[str, Any]) -> dict[str, Any]:
    """Its sections of positions as those of a text."""
    plain: dict[str, Any] = {}
    for name in _ROPE:
        if isinstance(section := text.get(name), Mapping):
            kept = {key: value for key, value in section.items() if key not in _MROPE}
            plain[name] = {key: "default" if value == "mrope" else value for key, value in kept.items()}
    thetas = [section.get("rope_theta") for section in (*plain.values(), text)]
    if "default_theta" in text and all(theta is None for theta in thetas):
        plain["rope_theta"] = text["default_theta"]
    return plain


_LLAVA = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_LLAVA_REST = ("vision_tower.", "multi_modal_projector.", "image_newline")
_QWEN = (("model.language_model.", "model."),)
_OLD_QWEN = (("model.", "model."), *_QWEN)
_MODULE = "model.language_model."
_LLAMA_SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
_MISTRAL_SIZES = {**_LLAMA_SIZES, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_SIZES = {"llama": _LLAMA_SIZES, "mistral": _MISTRAL_SIZES}  # which files of LLaVA leave out
_QWEN2_VL = {"qwen2": {"default_theta": 1e6, "max_window_layers": 80, "rms_norm_eps": 1e-5}}
_QWEN3_VL = {"qwen3": {"default_theta": 5e5}}
# whose logits are the output layer's alone: transformers' wrappers leave out what others (Granite) divide them by
_PLAIN = {kind: kind for kind in ("llama", "mistral", "qwen2", "qwen3")}

WRAPPERS: Mapping[str, Wrapper] = {
    "gemma3": Wrapper(
        {"gemma3_text": "gemma3_text"},
        _LLAVA,
        _MODULE,
        _LLAVA_REST[:2],
        defaults={"gemma3_text": {TIED: True}},
    ),
    "mistral3": Wrapper({"mistral": "mistral", "ministral3": "ministral3"}, _LLAVA, _MODULE, _LLAVA_REST[:2]),
    "qwen3_5": Wrapper({"qwen3_5_text": "qwen3_5_text"}, _QWEN, _MODULE, ("visual.",), "model."),
    "qwen3_5_moe": Wrapper({"qwen3_5_moe_text": "qwen3_5_moe_text"}, _QWEN, _MODULE, ("visual.",), "model."),
    "qwen2_vl": Wrapper({"qwen2_vl_text": "qwen2"}, _OLD_QWEN, _MODULE, ("visual.",), flat=True, defaults=_QWEN2_VL),
    "qwen2_5_vl": Wrapper({"qwen2_5_vl_text": "qwen2"}, _OLD_QWEN, _MODULE, ("visual.",), flat=True, defaults=_QWEN2_VL),
    "qwen3_vl": Wrapper({"qwen3_vl_text": "qwen3"}, _QWEN, _MODULE, ("visual.",), "model.", defaults=_QWEN3_VL),
    "llava": Wrapper(_PLAIN, _LLAVA, _MODULE, _LLAVA_REST, defaults=_SIZES),
    "llava_next": Wrapper(_PLAIN, _LLAVA, _MODULE, _LLAVA_REST, defaults=_SIZES),
    "internvl": Wrapper({"qwen2": "qwen2", **_PLAIN}, _LLAVA, _MODULE, _LLAVA_REST[:2]),
}

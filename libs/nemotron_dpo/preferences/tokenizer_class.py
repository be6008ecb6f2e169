"""Detect tokenizers whose class makes transformers 5 split text otherwise than tokenizer.json says.

transformers 4 takes tokenizer.json as it is, and so does this project. transformers 5 does the same for most tokenizer classes.
For some classes it builds the normalizer and the pre-tokenizer anew and takes only the vocabulary from the file. A server with
transformers 5 may then make other token ids, so the user is told of the difference. The rules here follow its AutoTokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# model_type -> the class that transformers 5 has for it; for other types transformers goes by tokenizer_class
_OF_MODEL = {"gemma": "Gemma", "qwen2": "Qwen2", "qwen3": "Qwen2", "qwen3_moe": "Qwen2"}
_AS_IT_IS = ("mistral", "mixtral", "phi3", "nemotron")  # transformers 5 takes tokenizer.json, whatever tokenizer_class says
_DISTRUSTED = ("qwen2",)  # it takes the class of _OF_MODEL, whatever tokenizer_class says


def doubt(tokenizer: Mapping[str, Any], config: Mapping[str, Any], model_type: str | None) -> str | None:
    """A warning where transformers 5 builds a tokenizer that differs from `tokenizer`; None where it does not.

    `tokenizer` is the content of tokenizer.json, `config` that of tokenizer_config.json. `model_type` is the field of that name
    in the config.json of the same folder.
    """
    name = _class(config.get("tokenizer_class"), model_type, tokenizer)
    steps = _STEPS.get(name or "")
    if steps is None or steps(config) == [_essence(tokenizer.get(part)) for part in ("normalizer", "pre_tokenizer")]:
        return None
    what = f"transformers 5 builds a {name}Tokenizer that is not tokenizer.json's, which is taken here and by transformers 4"
    if model_type in _DISTRUSTED:
        return f"{what}: a server may make other ids"
    return f'{what}: a server may make other ids, but for tokenizer_class "PreTrainedTokenizerFast"'


def _class(said: str | None, model_type: str | None, tokenizer: Mapping[str, Any]) -> str | None:
    """The name, without "Tokenizer", of the class that AutoTokenizer chooses; None where it takes tokenizer.json as it is."""
    named = said.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(said, str) and said else None
    model_type = model_type if isinstance(model_type, str) else None
    if model_type in _AS_IT_IS:
        return None
    if named == "Llama" and model_type not in _DISTRUSTED and "ByteLevel" in _types(tokenizer):
        return None
    if named is None or model_type in _DISTRUSTED:
        return _OF_MODEL.get(model_type or "")
    return named


def _types(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_types, value))
    if not isinstance(value, Mapping):
        return set()
    own = {value["type"]} if isinstance(value.get("type"), str) else set()
    return own.union(*(_types(item) for key, item in value.items() if key not in ("vocab", "merges", "added_tokens")))


def _essence(step: Any) -> Any:
    """A normalizer or pre-tokenizer of tokenizer.json, without `trim_offsets`, which has no influence on token ids."""
    if isinstance(step, list):
        return [_essence(item) for item in step]
    return {key: _essence(item) for key, item in step.items() if key != "trim_offsets"} if isinstance(step, Mapping) else step


def _llama(config: Mapping[str, Any]) -> list[Any]:
    prefix = config.get("add_prefix_space")
    scheme = "never" if prefix is False else "always" if config.get("legacy") else "first"
    return [None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}]


def _gemma(config: Mapping[str, Any]) -> list[Any]:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, split]


def _qwen2(config: Mapping[str, Any]) -> list[Any]:
    split = {"type": "Split", "pattern": {"Regex": _QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return [{"type": "NFC"}, {"type": "Sequence", "pretokenizers": [split, _bytes(config, use_regex=False)]}]


def _gpt2(config: Mapping[str, Any]) -> list[Any]:
    return [None, _bytes(config, use_regex=True)]


def _gpt_neox(config: Mapping[str, Any]) -> list[Any]:
    return [{"type": "NFC"}, _bytes(config, use_regex=True)]


def _bytes(config: Mapping[str, Any], *, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": bool(config.get("add_prefix_space")), "use_regex": use_regex}


_STEPS = {"Llama": _llama, "Gemma": _gemma, "Qwen2": _qwen2, "GPT2": _gpt2, "GPTNeoX": _gpt_neox}

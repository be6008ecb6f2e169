"""Tokenizers and chat templates."""

from __future__ import annotations

import datetime
import functools
import json
from pathlib import Path
from typing import Any

from fuzz.target import Target, as_is, as_json, put


@functools.cache
def _tokenizer_json() -> dict[str, Any]:
    from support.small_tokenizers import merging

    return json.loads(merging().to_str())


def _tokenizers() -> list[Any]:
    return [
        _tokenizer_json(),
        {
            **_tokenizer_json(),
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        },
    ]


def _open_tokenizer(folder: Path) -> object:
    from nemotron_dpo.preferences.boundary import RenderedPair
    from nemotron_dpo.preferences.encoding import make_encoder
    from nemotron_dpo.preferences.tokenizer_folder import open_folder

    opened = open_folder(str(folder))
    encoder = make_encoder(opened.load(), plain=True)
    return opened.doubt, opened.digests, list(encoder.encode([RenderedPair("xabcd", "a", "b z")]))


def _read_tokenizer(folder: Path, content: bytes) -> object:
    put(folder, "tokenizer.json", content)
    put(folder, "tokenizer_config.json", b"{}")
    return _open_tokenizer(folder)


def _tokenizer_configs() -> list[Any]:
    token = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return [
        {
            "tokenizer_class": "LlamaTokenizerFast",
            "bos_token": "x",
            "eos_token": {**token, "__type": "AddedToken"},
            "add_bos_token": False,
            "added_tokens_decoder": {"6": token, "7": {**token, "content": "<new>"}},
            "chat_template": "{{ messages }}",
            "legacy": False,
            "additional_special_tokens": ["a"],
            "extra_special_tokens": {"image": "b"},
            "model_max_length": 1e30,
            "pad_token": None,
        },
        {
            "chat_template": [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}],
            "eos_token": "</s>",
        },
    ]


def _read_tokenizer_config(folder: Path, content: bytes) -> object:
    put(folder, "tokenizer.json", as_json(_tokenizer_json()))
    put(folder, "tokenizer_config.json", content)
    put(folder, "special_tokens_map.json", content)
    return _open_tokenizer(folder)


def _templates() -> list[Any]:
    from support import chat_templates

    texts = [value.encode() for name, value in vars(chat_templates).items() if name.isupper() and isinstance(value, str)]
    return [
        *texts,
        b"{% for m in messages %}{% generation %}{{ m.content | upper | replace('a', 'b') }}{% endgeneration %}{% endfor %}",
        b"{% macro f(x, y=2) %}{{ x }}{% endmacro %}{{ f(messages | length) }}{{ tools | tojson(indent=2) }}{{ '%5d' % 3 }}",
        b"{{ strftime_now('%Y') }}{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ messages[0]['role'] * 2 }}",
        b"{{ range(3) | list }}",
    ]


def _read_template(folder: Path, content: bytes) -> object:
    from nemotron_dpo.preferences import template_limits
    from nemotron_dpo.preferences.chat_template import compile_template
    from nemotron_dpo.preferences.problems import RowProblem

    template_limits.SECONDS = 0.3
    text = content.decode(errors="replace")
    render = compile_template(text, "template", {"bos_token": "<s>", "eos_token": "</s>"}, datetime.datetime(2026, 1, 1))
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    try:
        return render(turns, False, [{"type": "function", "function": {"name": "f"}}])
    except RowProblem as problem:
        return problem


TARGETS = (
    Target("tokenizer.json", _tokenizers, as_json, _read_tokenizer),
    Target("tokenizer_config.json", _tokenizer_configs, as_json, _read_tokenizer_config),
    Target("chat template", _templates, as_is, _read_template),
)

"""A tokenizer that transformers 5 builds anew is told from one that it takes as tokenizer.json has it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support import families
from support.small_tokenizers import byte_level, save, sentencepiece_like

CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GemmaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizerFast",
)
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
TEXTS = ("<s>[INST] hi [/INST]</s> hi", " hi  12 don't", "a1b22 ")


def rebuilt(tokenizer: Tokenizer, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.normalizer, changed.pre_tokenizer = normalizer, pre_tokenizer
    return changed


def tokenizers() -> dict[str, Tokenizer]:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    gemma = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return {
        "prepended": sentencepiece_like(),
        "metaspace": rebuilt(sentencepiece_like(), None, metaspace),
        "gemma": rebuilt(sentencepiece_like(), normalizers.Replace(" ", "\u2581"), gemma),
        "bytes": byte_level(),
        "bytes, composed": rebuilt(byte_level(), normalizers.NFC(), byte_level().pre_tokenizer),
        "digits apart": rebuilt(byte_level(), None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), of_bytes])),
        "qwen": rebuilt(byte_level(), normalizers.NFC(), pre_tokenizers.Sequence([split, of_bytes])),
    }


def steps(tokenizer: Tokenizer) -> list[Any]:
    said = json.loads(tokenizer.to_str())
    return json.loads(
        json.dumps([said["normalizer"], said["pre_tokenizer"]]).replace('"trim_offsets": true', '"trim_offsets": false')
    )


def test_what_transformers_builds_anew_is_said(tmp_path: Path) -> None:
    models = {kind: families.write_config(tmp_path / kind, kind) for kind in KINDS}
    seen = set()
    for (name, tokenizer), kind, cls, legacy in product(tokenizers().items(), (None, *models), CLASSES, (None, True)):
        if kind not in (None, "llama") and (name not in ("prepended", "qwen") or cls in CLASSES[3:5] + CLASSES[6:]):
            continue
        if legacy and cls not in ("LlamaTokenizer", "LlamaTokenizerFast"):
            continue
        if kind is None and cls is None:  # AutoTokenizer knows no class then
            continue
        case = (name, kind, cls, legacy)
        folder = save(tmp_path / "-".join(map(str, case)), tokenizer, tokenizer_class=cls, legacy=legacy, eos_token="</s>")
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if cls is None:
            del config["tokenizer_class"]
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if kind is not None:
            (folder / "config.json").write_text(models[kind].read_text())
        oracle: Any = AutoTokenizer.from_pretrained(folder)
        opened = open_folder(str(folder))
        ours, theirs = opened.load(), oracle.backend_tokenizer
        differs = steps(ours) != steps(theirs)
        assert (opened.doubt is not None) == differs, case
        if not differs:
            assert [ours.encode(text, add_special_tokens=False).ids for text in TEXTS] == [
                oracle(text, add_special_tokens=False).input_ids for text in TEXTS
            ], case
        seen.add((name, differs))
    assert len(seen) == 2 * len(tokenizers())  # each is taken as it is for one class and built anew for another

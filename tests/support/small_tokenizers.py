"""Small tokenizers made on the spot, as folders like those that transformers saves."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "<start_of_turn>", "<end_of_turn>", "<|endoftext|>",
]  # fmt: skip
_TEXT = [
    "The quick brown fox jumps over the lazy dog. ",
    "user assistant system hello world xabcd, ",
    "How are you today? ",
] * 8


@functools.cache
def byte_level(*, adds_bos: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer of about 400 tokens: it can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment] - tokenizers' stubs lack the setter
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment] - tokenizers' stubs lack the setter
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment] - tokenizers' stubs lack the setter
    return tokenizer


@functools.cache
def merging(vocabulary: str = "xabcd", merges: tuple[tuple[str, str], ...] = (("a", "b"),)) -> Tokenizer:
    """A character tokenizer with the given merges: prompt "xa" and response "bcd" would merge across the boundary."""
    tokens = [*vocabulary, *("".join(m) for m in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=list(merges)))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


@functools.cache
def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: a space is put in front of every text by the normalizer, spaces become U+2581, bytes as fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz[]/INST"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "h"), ("h", "i")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])  # type: ignore[assignment] - tokenizers' stubs lack the setter
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment] - tokenizers' stubs lack the setter
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Write tokenizer.json and a tokenizer_config.json of `config` (None values left out) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **kept}))
    return folder

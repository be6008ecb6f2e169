"""A small random Llama and random pairs for tests, made with transformers so that nothing of ours is its own witness."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from nemotron_dpo.streams import StreamInfo, open_writer

VOCAB = 96


def write_llama(folder: Path, *, tied: bool = True, seed: int = 0, **changes: object) -> Path:
    """A random Llama of 2 layers as an HF folder, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "rope_theta": 10000.0,
        "initializer_range": 0.2,  # larger than usual, so that log-probs differ from uniform
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    return folder


def first_layers(source: Path, folder: Path, number: int) -> Path:
    """The Llama of `source` with its first layers alone, as an HF folder: weights of their real sizes in less time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", num_hidden_layers=number)
    model.save_pretrained(folder)
    for path in source.iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path)
    return folder


@functools.lru_cache(maxsize=4)
def load_llama(folder: Path):
    """The same model in transformers, float32, eager attention."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@dataclass(frozen=True)
class Tokens:
    """Token ids of a few pairs."""

    prompts: list[np.ndarray]
    chosen: list[np.ndarray]
    rejected: list[np.ndarray]


def random_pairs(count: int, seed: int = 0, longest: int = 20) -> Tokens:
    """Pairs of random ids, low ones chosen over high ones so that there is something to learn; one-token sides occur."""
    rng = np.random.default_rng(seed)

    def side(low: int, high: int) -> list[np.ndarray]:
        return [rng.integers(low, high, size=rng.integers(1, longest)).astype(np.int32) for _ in range(count)]

    return Tokens(side(3, VOCAB), side(3, VOCAB // 2), side(VOCAB // 2, VOCAB))


def pair_id(*ids: Sequence[int] | np.ndarray) -> bytes:
    """What names a pair in a stream: BLAKE2b over the lengths of prompt, chosen and rejected and their ids, int32."""
    packed = [len(side) for side in ids] + [int(token) for side in ids for token in side]
    return hashlib.blake2b(struct.pack(f"<{len(packed)}i", *packed), digest_size=16).digest()


def write_pairs(path: Path, tokens: Tokens) -> Path:
    """`tokens` as a tokenized_pairs file."""
    rows = [
        {
            "pair_id": pair_id(prompt, chosen, rejected),
            "source_line": i + 1,
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "chosen_truncated": False,
            "rejected_truncated": False,
        }
        for i, (prompt, chosen, rejected) in enumerate(zip(tokens.prompts, tokens.chosen, tokens.rejected, strict=True))
    ]
    with open_writer(path, StreamInfo("tokenized_pairs", "tests", "0")) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    return path


def reference_logps(model, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """Log-probs of each response token by one plain transformers forward over prompt + response."""
    log_p = reference_log_p(model, prompt, response)
    return log_p.gather(1, torch.from_numpy(response.astype(np.int64))[:, None]).squeeze(1)


def reference_log_p(model, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """Log-probs of the whole vocabulary at each response token, by the same."""
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
    return model(ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]

"""Pairs and scores for tests of the store, each told from its number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.store import Context
from nemotron_dpo.streams.schema import TOKENIZED_PAIRS

CONTEXT = Context("tensors:1", "float32", "c 1")


def pairs_of(numbers: list[int]) -> Pairs:
    """Pairs whose ids are sha-like and whose responses have one and two tokens more than their number's last digit."""
    rows = [
        {
            "pair_id": identity(n),
            "source_line": n + 1,
            "prompt_ids": [7],
            "chosen_ids": [1] * (n % 10 + 1),
            "rejected_ids": [2] * (n % 10 + 2),
            "chosen_truncated": False,
            "rejected_truncated": False,
        }
        for n in numbers
    ]
    return Pairs.of(pa.RecordBatch.from_pylist(rows, schema=TOKENIZED_PAIRS))


def identity(n: int) -> bytes:
    return (n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).to_bytes(16, "big")


def record(n: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    return identity(n), np.full(n % 10 + 1, -n - 0.25, np.float32), np.full(n % 10 + 2, -n - 0.5, np.float32)

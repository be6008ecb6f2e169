"""Windows over a stream: every replica has rows of each, memory is bounded, no pair is lost or moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from nemotron_dpo.policy.cost import balanced
from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.windows import window_tokens, windows
from nemotron_dpo.streams.schema import TOKENIZED_PAIRS

MAX_TOKENS = 256


def stream(lengths: Sequence[int], rows_a_batch: int) -> list[pa.RecordBatch]:
    """Pairs of so many tokens each, of which chosen and rejected response have one."""
    rows = [
        {
            "pair_id": i.to_bytes(16, "big"),
            "source_line": i,
            "prompt_ids": [7] * (n - 2),
            "chosen_ids": [1],
            "rejected_ids": [2],
            "chosen_truncated": False,
            "rejected_truncated": False,
        }
        for i, n in enumerate(lengths)
    ]
    parts = (rows[i : i + rows_a_batch] for i in range(0, len(rows), rows_a_batch))
    return [pa.RecordBatch.from_pylist(part, schema=TOKENIZED_PAIRS) for part in parts]


def test_a_window_has_sixteen_rows_and_four_for_each_of_many_replicas() -> None:
    assert [window_tokens(1000, replicas) for replicas in (1, 4, 8, 64, 256)] == [16_000, 16_000, 32_000, 256_000, 1_024_000]


@pytest.mark.parametrize("replicas", [1, 8, 64])
def test_every_replica_has_its_part_of_every_whole_window(replicas: int) -> None:
    lengths = np.random.default_rng(replicas).integers(8, 100, size=200 + 1200 * replicas // 8)
    limit = window_tokens(MAX_TOKENS, replicas)
    made = list(windows(stream(lengths.tolist(), 97), limit))
    assert len(made) > 1
    assert [line for window in made for line in window.column("source_line").to_pylist()] == list(range(len(lengths)))
    for window in made[:-1]:
        tokens = Pairs.of(window).num_tokens
        assert limit <= tokens.sum() < limit + 97 * 100  # a batch more at most
        parts = balanced(tokens, replicas)
        rows = [len(pack(tokens[part].tolist(), MAX_TOKENS)) for part in parts]
        assert min(rows) >= 4
        assert max(rows) - min(rows) <= 1
        shares = [int(tokens[part].sum()) for part in parts]
        assert max(shares) <= 1.01 * np.mean(shares)  # so none is idle for more than a hundredth of the time


def test_a_large_batch_is_cut_and_a_long_pair_is_not() -> None:
    made = list(windows(stream([10] * 40 + [5000] + [10] * 3, 100), 100))
    assert [int(Pairs.of(window).num_tokens.sum()) for window in made] == [100, 100, 100, 100, 5000, 30]

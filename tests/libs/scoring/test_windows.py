"""Windows over a stream: every replica has rows of each, memory is bounded, no pair is lost or moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from nemotron_dpo.policy.cost import balanced
from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.merge import rows_in_shard, rows_of_shard
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


def test_shards_divide_the_rows_of_a_stream_whatever_its_batches() -> None:
    for rows_a_batch in (1, 2, 7, 50):
        for count in (1, 2, 3, 8, 60):
            shards = []
            for number in range(1, count + 1):
                made = rows_of_shard(iter(stream([10] * 50, rows_a_batch)), number, count)
                shards.append([line for batch in made for line in batch.column("source_line").to_pylist()])
                assert shards[-1] == list(range(number - 1, 50, count))
                assert rows_in_shard(50, number, count) == len(shards[-1])
            assert sorted(line for shard in shards for line in shard) == list(range(50))


@pytest.mark.parametrize("replicas", [8, 64, 256])
def test_no_replica_is_idle_over_a_hundred_thousand_pairs(replicas: int) -> None:
    """Lengths spread as those of HH: a mean of 430 tokens, the longest of 2,000; costs grow by their square, as attention's."""
    tokens = np.clip(np.random.default_rng(0).lognormal(5.85, 0.65, 100_000), 20, 2000).astype(np.int64)
    costs, ends = tokens * (1 + tokens / 4096), np.cumsum(tokens)
    start, busiest = 0, 0.0
    while start < len(tokens):
        done = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, done + window_tokens(16384, replicas))) + 1
        busiest += max(costs[start:stop][part].sum() for part in balanced(costs[start:stop], replicas))
        start = stop
    assert 1 - costs.sum() / (replicas * busiest) <= 0.05

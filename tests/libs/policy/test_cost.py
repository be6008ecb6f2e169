"""FLOPs of a pair by hand, and batches divided by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.cost import PairLengths, balanced, pair_flops
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import UniformDecoder
from nemotron_dpo.steps.estimate.sizes import Lengths

# hidden 4, two heads of 2 over one group: projections 4 * (4 + 2 + 2 + 4) = 48, feed-forward 3 * 4 * 5 = 60 weights
DECODER = UniformDecoder(
    num_layers=2, hidden_size=4, num_attention_heads=2, num_query_groups=1, kv_channels=2, ffn_hidden_size=5, vocab_size=10,
    max_position_embeddings=64, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=True, dtype="float32",
)  # fmt: skip
DENSE = DECODER.architecture
MIXTURE = replace(DECODER, experts=Router(num=8, top_k=2)).architecture


def flops(policy: Architecture, *lengths: int) -> int:
    return pair_flops(policy, *(np.array([n]) for n in lengths)).item()


def test_a_pair_by_hand() -> None:
    # 3 | 2 | 1 tokens: 2 * 108 * 6 = 1296 in the weights; 5 * 6 / 2 + 3 + 1 = 19 meetings of 4 channels, 4 each: 304
    assert flops(DENSE, 3, 2, 1) == 2 * (1296 + 304) + 2 * 4 * 10 * 3
    # a second expert for every token, and the router's 8 x 4 weights
    assert flops(MIXTURE, 3, 2, 1) == flops(DENSE, 3, 2, 1) + 2 * (2 * 60 * 6) + 2 * (2 * 32 * 6)


@given(st.lists(st.integers(1, 10**6), min_size=1), st.integers(1, 5))
def test_parts_are_whole_ordered_and_even(costs: list[int], size: int) -> None:
    parts = balanced(np.array(costs), size)
    assert sorted(i for part in parts for i in part) == list(range(len(costs)))
    assert all(part == sorted(part) for part in parts)
    assert min(map(len, parts)) > 0 or len(costs) < size
    sums = [sum(costs[i] for i in part) for part in parts]
    assert max(sums) - min(sums) <= max(costs)  # whoever is ahead was behind before its last


def test_rows_would_be_uneven() -> None:
    costs = np.array([100, 1, 100, 1, 100, 1, 100, 1])
    assert [int(costs[part].sum()) for part in balanced(costs, 2)] == [202, 202]
    assert [int(costs[rank::2].sum()) for rank in range(2)] == [400, 4]


def test_meetings_within_a_window_by_counting_them() -> None:
    """Of 5 | 3 | 7 tokens: each query of a path sees at most the last tokens of it, and the prompt is computed once."""
    lengths = PairLengths(*(np.array([n]) for n in (5, 3, 7)))
    for window in (None, 1, 2, 4, 5, 7, 8, 11, 12, 40):
        chosen = [min(place + 1, window or 99) for place in range(5 + 3)]
        rejected = [min(place + 1, window or 99) for place in range(5, 5 + 7)]
        assert lengths.meetings(window).item() == sum(chosen) + sum(rejected)
        mean = Lengths(5e3, 10e3).meetings(None if window is None else 1000 * window)
        assert mean == pytest.approx(1e6 * (2 * _area(10, window) - _area(5, window)))


def _area(end: int, window: int | None) -> float:
    """That below min(place, window), from 0 to `end`, in strips whose middles count."""
    return sum(min((place + 0.5) / 10, window or 99) for place in range(10 * end)) / 10

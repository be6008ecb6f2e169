"""Packing and data order: invariants over random input, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.sampler import batch_indices, batches_per_epoch


@given(st.lists(st.integers(1, 50)), st.integers(1, 60))
def test_every_pair_lands_in_one_bin_that_it_fits(lengths: list[int], room: int) -> None:
    bins = pack(lengths, room)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    for members in bins:
        assert len(members) == 1 or sum(lengths[i] for i in members) <= room


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [
        ([], 10, []),
        ([4], 10, [[0]]),
        ([11], 10, [[0]]),  # longer than a row: a row of its own
        ([3, 7, 5, 5], 10, [[1, 0], [2, 3]]),  # 7 then 5 open bins; 5 fits the second exactly, 3 the first
    ],
)
def test_best_fit_decreasing(lengths: list[int], room: int, expected: list[list[int]]) -> None:
    assert pack(lengths, room) == expected


def test_rows_are_filled() -> None:
    """Lengths as preference data has them, many short and few long ones, in rows of 4096 tokens."""
    lengths = np.random.default_rng(0).lognormal(5.3, 0.7, size=1000).clip(8, 2048).astype(int).tolist()
    assert sum(lengths) / (len(pack(lengths, 4096)) * 4096) >= 0.97


def test_an_epoch_visits_every_pair_once_and_the_next_differs() -> None:
    first = [batch_indices(step, 12, 4, seed=7, shuffle=True) for step in range(3)]
    second = [batch_indices(step, 12, 4, seed=7, shuffle=True) for step in range(3, 6)]
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(12))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_order_is_a_function_of_seed_and_step_alone() -> None:
    assert np.array_equal(batch_indices(5, 12, 4, seed=1, shuffle=True), batch_indices(5, 12, 4, seed=1, shuffle=True))
    assert not np.array_equal(batch_indices(0, 12, 12, seed=1, shuffle=True), batch_indices(0, 12, 12, seed=2, shuffle=True))


def test_an_epoch_is_shuffled_once_and_the_order_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected is one permutation an epoch of numpy's generator, seeded with (seed, epoch); runs resume in its middle."""
    seeds: list[list[int]] = []
    generator = np.random.default_rng
    whole = [generator([9, epoch]).permutation(100) for epoch in range(3)]
    monkeypatch.setattr(np.random, "default_rng", lambda seed: (seeds.append(seed), generator(seed))[1])
    for step in (*range(36), 13, 14):
        epoch, batch = divmod(step, 12)
        rows = batch_indices(step, 100, 8, seed=9, shuffle=True)
        assert rows.dtype == np.int64
        assert rows.tolist() == whole[epoch][batch * 8 : batch * 8 + 8].tolist()
    assert seeds == [[9, 0], [9, 1], [9, 2], [9, 1]]


def test_unshuffled_order_is_the_files_and_the_incomplete_end_is_left_out() -> None:
    assert [batch_indices(s, 5, 2, seed=0, shuffle=False).tolist() for s in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_fewer_pairs_than_a_batch() -> None:
    with pytest.raises(ValueError, match="a batch of 4 pairs is more than the 3"):
        batches_per_epoch(3, 4)

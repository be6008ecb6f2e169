"""Intervals and chances, against values that are known without drawing."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from nemotron_dpo.report.bootstrap import chance_of_worse, draws, interval, share_interval


def test_wilson_intervals_are_those_of_the_books() -> None:
    """By hand: (p + z2/2n -+ z sqrt(pq/n + z2/4n2)) / (1 + z2/n), z2 = 3.8415."""
    for hits, count, low, high in (
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (50, 100, 0.4038, 0.5962),
    ):
        found = share_interval(hits, count)
        assert (found.mean, found.low, found.high) == (
            hits / count,
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )


def test_an_interval_of_many_pairs_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(1.0, 2.0, 5000)
    found, half = interval(values), 1.96 * values.std() / sqrt(5000)
    assert found.mean == values.mean()
    assert (found.mean - found.low, found.high - found.mean) == (pytest.approx(half, rel=0.08), pytest.approx(half, rel=0.08))
    assert interval(np.full(3, 0.5)) == interval(np.full(9, 0.5))


def test_the_chance_of_two_pairs_is_counted_by_hand() -> None:
    """Of -1 and 3 two draws give -1, 1, 1, 3: one of four is below 0. Of -1 and 1: -1, 0, 0, 1, and even counts half."""
    error = 4 * sqrt(0.25 * 0.75 / 2000)
    assert chance_of_worse(np.array([-1.0, 3.0])) == pytest.approx(0.25, abs=error)
    assert chance_of_worse(np.array([-1.0, 1.0])) == pytest.approx(0.5, abs=error)
    assert chance_of_worse(np.array([1.0, 2.0, 3.0])) == 0.0


def test_draws_are_the_same_for_arrays_of_one_length() -> None:
    one, other = np.arange(7.0), np.arange(7.0) ** 2
    assert np.allclose(draws(one) - draws(other), draws(one - other))
    assert len(draws(np.zeros(100_000))) == 400

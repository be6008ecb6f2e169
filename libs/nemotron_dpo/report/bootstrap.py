"""How sure a mean over pairs is: by drawing the pairs again, with replacement (Efron's bootstrap, percentile intervals).

A share of right pairs has Wilson's interval instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemotron_dpo.wilson import interval_of_share

_DRAWS, _FEWEST = 2000, 400  # of many pairs fewer draws say as much: their means are almost normal
_WORK = 40_000_000  # pairs drawn in all, about
_CELLS = 4_000_000  # of indices held at once
_SEED = 20


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval, which 95 of 100 draws lie in."""

    mean: float
    low: float
    high: float


def interval(values_P: np.ndarray) -> Interval:
    """The mean of `values_P` over P pairs."""
    means_D = draws(values_P)
    low, high = np.quantile(means_D, [0.025, 0.975])
    return Interval(float(np.mean(values_P)), float(low), float(high))


def draws(values_P: np.ndarray) -> np.ndarray:
    """Means of D draws of P pairs each; the same draws for all arrays of one length, so that differences are paired."""
    values = np.asarray(values_P, dtype=np.float64)
    generator, size = np.random.default_rng(_SEED), len(values)
    at_once = max(1, _CELLS // max(size, 1))
    means, num_draws = [], min(_DRAWS, max(_FEWEST, _WORK // max(size, 1)))
    for start in range(0, num_draws, at_once):
        rows = min(at_once, num_draws - start)
        means.append(values[generator.integers(0, size, (rows, size), dtype=np.int32)].mean(axis=1))
    return np.concatenate(means)


def chance_of_worse(difference_P: np.ndarray) -> float:
    """Of the differences of two runs on the same pairs, in the better one's favour: how often draws take the lead away.

    That is the one-sided p-value of the bootstrap. A draw that is even counts half.
    """
    means = draws(difference_P)
    return float(np.mean(means < 0) + np.mean(means == 0) / 2)


def share_interval(hits: int, count: int) -> Interval:
    """A share of `count` pairs, with Wilson's interval."""
    return Interval(hits / count, *interval_of_share(hits, count))

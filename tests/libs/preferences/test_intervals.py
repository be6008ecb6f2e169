"""Bootstrap intervals against what statistics has in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemotron_dpo.preferences.intervals import Ratio, difference, interval, intervals, resampled


def test_the_interval_of_a_mean_is_the_normal_one_where_pairs_are_many() -> None:
    """Percentiles of 1000 draws know the edges of a normal interval to a few percent of its width."""
    random, ones = np.random.default_rng(1), np.ones(4000)
    for values in ((random.random(4000) < 0.7).astype(np.float64), random.normal(3.0, 2.0, 4000)):
        low, high = intervals({"x": Ratio(values, ones)})["x"] or (0.0, 0.0)
        error = values.std() / math.sqrt(len(values))
        assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.3 * error)


def test_a_share_has_the_interval_of_wilson_whose_width_is_never_nothing() -> None:
    """By hand, as in the tests of reports: all of 10 pairs are right, all of the 8 that count, and none is there to count."""
    hits, some = np.ones(10), np.array([1.0] * 8 + [0.0] * 2)
    figures = {
        "all": Ratio(hits, hits, True),
        "some": Ratio(some, hits, True),
        "part": Ratio(some, some, True),
        "none": Ratio(0 * hits, 0 * hits, True),
    }
    found = intervals(figures)
    assert found["all"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert found["some"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert found["part"] == pytest.approx([8 / (8 + 3.8415), 1.0], abs=1e-4)  # n / (n + z2), where all are right
    assert found["none"] is None


def test_a_ratio_of_sums_is_resampled_as_one() -> None:
    """Tokens of a pair stay together: with a value a token that all pairs share there is nothing to be unsure of."""
    tokens = np.random.default_rng(2).integers(1, 500, 50).astype(np.float64)
    assert intervals({"x": Ratio(0.25 * tokens, tokens)})["x"] == pytest.approx([0.25, 0.25])


def test_what_is_hard_for_both_cancels() -> None:
    """Margins that differ between pairs by 10 and between the two policies by 1 +- 0.1: alone neither is known that well."""
    random, ones = np.random.default_rng(3), np.ones(400)
    hard = random.normal(0.0, 10.0, 400)
    ours = {"x": Ratio(hard + 1.0 + random.normal(0.0, 0.1, 400), ones), "mine": Ratio(ones, ones)}
    apart = difference(ours, {"x": Ratio(hard, ones), "theirs": Ratio(ones, ones)})
    assert apart.keys() == {"x"}
    less, edges = apart["x"]
    assert less == pytest.approx(1.0, abs=0.02)
    assert edges is not None
    assert edges[1] - edges[0] == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.2)
    alone = intervals(ours)["x"]
    assert alone is not None
    assert alone[1] - alone[0] > 1.0


def test_a_part_that_some_draws_lack_has_an_interval_and_an_empty_one_none() -> None:
    has = np.array([1.0, 0.0, 0.0])
    draws = resampled({"x": Ratio(has, has), "none": Ratio(0 * has, 0 * has)})
    assert np.isnan(draws["x"]).mean() == pytest.approx((2 / 3) ** 3, abs=0.06)
    assert interval(draws["x"]) == [1.0, 1.0]
    assert interval(draws["none"]) is None
    assert resampled({}) == {}

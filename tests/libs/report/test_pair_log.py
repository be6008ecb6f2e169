"""What the log of pairs comes to: sightings, changes, bins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.report.pair_log import by_bins, correlation, read
from support.report_runs import pair_id, sightings, write_log


def test_each_pair_is_seen_first_and_last(tmp_path: Path) -> None:
    """In a log whose steps are not in order of the pairs, of a set that is validated, beside pairs that were trained on."""
    held, other = "validation-default", "validation-a"
    write_log(
        tmp_path,
        [
            sightings(0, held, [0.0, 0.0, 0.0]),
            sightings(1, "train", [5.0, 6.0]),
            sightings(5, other, [1.0]),
            sightings(5, held, [9.0, 9.0, 9.0]),
            sightings(10, held, [3.0, 2.0], start=1, source=["a", None]),
            sightings(10, held, [1.0], source=["b"]),
        ],
    )
    log = read(tmp_path)
    assert log is not None
    assert sorted(log.splits) == ["train", other, held]
    change = log.change()
    assert change is not None
    assert (change.split, change.was_seen_twice, len(change.last)) == (held, True, 3)
    assert [change.last.ids[pair] for pair in change.last.pair] == [pair_id(0), pair_id(1), pair_id(2)]
    assert change.first.margin.tolist() == [0.0, 0.0, 0.0]
    assert change.last.margin.tolist() == [1.0, 3.0, 2.0]
    assert [change.last.sources[code] for code in change.last.source] == ["b", "a", ""]


def test_pairs_that_are_trained_on_twice_do_where_nothing_is_held_out(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        [sightings(1, "train", [0.0, 0.0]), sightings(2, "train", [4.0], start=1), sightings(3, "train", [1.0], start=7)],
    )
    log = read(tmp_path)
    assert log is not None
    change = log.change()
    assert change is not None
    assert (change.split, change.last.margin.tolist()) == ("train", [4.0])
    write_log(tmp_path, [sightings(1, "train", [2.0, 1.0])])
    once = read(tmp_path)
    assert once is not None
    change = once.change()
    assert change is not None
    assert (change.was_seen_twice, change.last.margin.tolist()) == (False, [2.0, 1.0])


def test_a_log_without_pairs_or_without_a_log(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    write_log(tmp_path, [])
    log = read(tmp_path)
    assert log is not None
    assert (log.change(), log.problem) == (None, "pairs_log.arrow has no pairs yet.")


def test_correlation_is_pearsons() -> None:
    """By hand: of (1, 2, 3) and (1, 3, 2) it is 1/2; a column that does not vary has none."""
    assert correlation(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(0.5)
    assert correlation(np.array([1, 1, 1]), np.array([1, 3, 2])) is None
    assert correlation(np.array([1, 2, np.nan, 3]), np.array([1, 3, 9, 2])) == pytest.approx(0.5)


def test_bins_hold_every_row_once() -> None:
    for values in ([5, 1, 3, 2, 4, 6], [1, 1, 1, 1], [1, 1, 1, 9], [7]):
        bins = by_bins(np.array(values), lambda rows: rows.tolist(), 3)
        assert sorted(row for _, _, rows in bins for row in rows) == list(range(len(values)))  # type: ignore[attr-defined] - they are lists
    assert [bins[2] for bins in by_bins(np.array([5, 1, 3, 2, 4, 6]), lambda rows: rows.tolist(), 3)] == [
        [1, 3],
        [2, 4],
        [0, 5],
    ]

"""Which run is best: on shared pairs, by which metric, with which chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_dpo.report.comparison import page, run_names
from nemotron_dpo.report.ranking import best
from nemotron_dpo.report.run_report import Run, read_run
from nemotron_dpo.report.settings_diff import differing
from support.report_runs import SETTINGS, sightings, usual_rows, write_log, write_run


def _run(folder: Path, margins: Sequence[float] | None, *settings: str, start: int = 0) -> Run:
    """A run whose last validation gave `margins` to the pairs from `start` on."""
    write_run(folder, usual_rows(), settings=[*SETTINGS, *settings])
    if margins is not None:
        last = sightings(20, "validation-default", margins, start=start)
        write_log(folder, [sightings(0, "validation-default", [0.0] * len(margins), start=start), last])
    return read_run(folder)


UP = [float(n % 5 + 1) for n in range(60)]
DOWN = [margin - 4.5 for margin in UP]
BETA = "dpo.reference_policy_kl_penalty=0.3"
# Margins and settings of a run beside one with UP -> the best, how it was found, and how likely that is chance.
CASES = [
    (DOWN, (), "one", "By loss on the 60 held-out pairs", "less than 0.1 %"),
    (DOWN, ("policy.optimizer.lr=1",), "one", "By loss on the 60 held-out pairs", "less than 0.1 %"),
    (DOWN, (BETA,), "one", "By accuracy on the 60 held-out pairs", "less than 0.1 %"),
    (UP, (BETA,), "one", "By accuracy on the 60 held-out pairs", "50 %: do not rely on it"),
    ([n + 0.0 for n in (*UP[:59], -90.0)], (BETA,), "one", "By accuracy on the 60 held-out pairs", "18 %: do not rely on it"),
    (None, (), "one", "By validation loss", "Cannot be told"),
]  # fmt: skip


@pytest.mark.parametrize(("margins", "settings", "winner", "why", "chance"), CASES)
def test_the_best_of_two(
    margins: list[float] | None, settings: tuple[str, ...], winner: str, why: str, chance: str, tmp_path: Path
) -> None:
    """One wrong pair of 60 is drawn in none of a draw with (59/60)^60 = 36 %; such a draw is even, and counts half: 18 %."""
    runs = [_run(tmp_path / "one", UP), _run(tmp_path / "other", margins, *settings)]
    for order in (runs, runs[::-1]):
        verdict = best(order, run_names(order))
        assert verdict.why.startswith(why)
        if chance.startswith("18"):
            assert 15 <= float(verdict.chance.partition(" ")[0]) <= 22
        else:
            assert verdict.chance == chance
        if "50 %" not in chance and margins is not None:
            assert verdict.best == winner


def test_only_pairs_that_all_have_count(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "one", UP), _run(tmp_path / "other", DOWN, start=50)]
    assert "on the 10 held-out pairs" in best(runs, ["one", "other"]).why
    apart = [runs[0], _run(tmp_path / "other", DOWN, start=90)]
    assert best(apart, ["one", "other"]).chance == "Cannot be told"


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    for places, names in (
        (("a/run", "b/run"), ["a/run", "b/run"]),
        (("x/one", "x/two"), ["one", "two"]),
        (("x/one", "x/one"), ["one (1)", "one (2)"]),
    ):
        assert run_names([_run(tmp_path / place, None) for place in places]) == names


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "one", None, "checkpointing.checkpoint_dir=a"), _run(tmp_path / "other", None, BETA, "dpo.seed=7")]
    grid = differing(runs, ["one", "other"])
    assert grid is not None
    assert grid.rows == (("dpo.reference_policy_kl_penalty", "0.1", "0.3"), ("dpo.seed", "-", "7"))
    assert differing(runs[:1] * 2, ["one", "again"]) is None
    whole = page(runs)
    assert [section.key for section in whole.sections] == ["settings", "training", "reading", "origin-0", "origin-1"]
    assert [row[0] for row in whole.figures_first.rows] == ["one", "other"]

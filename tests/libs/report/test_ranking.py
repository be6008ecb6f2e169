"""Which run is best: on shared pairs, by which metric, with which chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_dpo.report.comparison import page, run_names
from nemotron_dpo.report.ranking import best
from nemotron_dpo.report.run_report import Run, read_run
from nemotron_dpo.report.settings_diff import differing
from support.report_runs import SETTINGS, sightings, usual_rows, validation_row, write_log, write_run


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
    ([n + 0.0 for n in (*UP[:59], -90.0)], (BETA,), "one", "By accuracy on the 60 held-out pairs", "18 %: do not rely on it"),
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
        assert verdict.best == winner


@pytest.mark.parametrize(
    ("margins", "settings", "why"),
    [
        (UP, (), "By loss on the 60 held-out pairs that all were validated on: 0.5568 of each."),
        (
            [2 * margin for margin in UP],
            (BETA,),
            "By accuracy on the 60 held-out pairs that all were validated on: 100 % of each.",
        ),
        (None, (), "By validation loss: 0.4200 of each."),
    ],
)
def test_equal_runs_have_no_winner(margins: list[float] | None, settings: tuple[str, ...], why: str, tmp_path: Path) -> None:
    """The loss is the mean of log(1 + exp(-m / 10)) for m from 1 to 5: 0.6444, 0.5981, 0.5544, 0.5130, 0.4741."""
    runs = [_run(tmp_path / "one", UP if margins else None), _run(tmp_path / "other", margins, *settings)]
    verdict = best(runs, ["one", "other"])
    assert (verdict.best, verdict.is_sure, verdict.why) == (None, False, why)
    assert verdict.headline == "No difference between one and other is to be seen."
    which, chance, _ = page(runs).answers
    assert (which.answer, chance.answer) == ("No difference", "There is no difference")


def test_of_more_runs_those_that_are_best_are_named(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, margins) for name, margins in (("worse", DOWN), ("one", UP), ("two", UP), ("three", UP))]
    assert best(runs, run_names(runs)).headline == "No difference between one, two and three is to be seen."


def test_by_records_alone_the_lower_loss_is_ahead(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, None) for name in ("one", "other")]
    write_run(tmp_path / "other", [*usual_rows()[:-1], validation_row(20, 0.5, 0.875)])
    verdict = best([read_run(tmp_path / "other"), runs[0]], ["other", "one"])
    assert (verdict.best, verdict.chance) == ("one", "Cannot be told")
    assert verdict.why == "By validation loss: 0.4200, against 0.5000 of other."


def test_only_pairs_that_all_have_count(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "one", UP), _run(tmp_path / "other", DOWN, start=50)]
    assert "on the 10 held-out pairs" in best(runs, ["one", "other"]).why
    apart = [runs[0], _run(tmp_path / "other", DOWN, start=90)]
    assert best(apart, ["one", "other"]).why.startswith("By validation loss")


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

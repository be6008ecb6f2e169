"""A part of the matrix (`test_matrix.py`) that takes seconds: preference-tokenize under errors of the machine and SIGKILL."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import kinds, stages
from faults.results import NOT_STRUCK
from faults.trial import trial_of

QUICK = 8  # points of each kind


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    stages.write_rows(folder)
    return folder


@pytest.mark.parametrize("kind", ["errno in turn", "errno of reading", "kill"])
@pytest.mark.slow
def test_tokenizing_under_faults(inputs: Path, tmp_path: Path, kind: str) -> None:
    trial = trial_of("preference-tokenize", inputs, tmp_path / "OUT")
    points = kinds.KINDS[kind](trial, tmp_path)
    step = len(points) / QUICK
    tried = [points[int(place * step)] for place in range(QUICK)]
    outcomes = {point.name: point.strike(trial) for point in tried}
    assert {name: outcome for name, outcome in outcomes.items() if outcome} == {}


@pytest.mark.slow
def test_a_fault_that_strikes_is_seen(inputs: Path, tmp_path: Path) -> None:
    """That the stage holds says something only if its operations are struck, and what is half written is told."""
    trial = trial_of("preference-tokenize", inputs, tmp_path / "OUT")
    ended = trial.run(at=1, errno=28)
    assert ended.status == 1
    assert "no space left on device" in ended.said
    assert trial.run(at=1, kill="before").status == -9
    pairs = tmp_path / "OUT" / "pairs.arrow"
    pairs.write_bytes(pairs.read_bytes()[:-1])
    assert trial.absent_or_whole() == "half written: ['pairs.arrow']"
    (point,) = (point for point in kinds.kills(trial, tmp_path) if point.name == "00 before self")
    assert point.strike(trial) in ("", NOT_STRUCK)
    (tmp_path / "OUT" / ".x.tmp").mkdir()
    assert trial.ends_equal() == "run again: left over: ['.x.tmp']"

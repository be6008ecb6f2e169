"""The matrix of faults, a cell a test: a kind of fault at a stage, at many points. It takes hours: only with --all-faults.

Every result is a line of --faults-results as soon as it is known. A point that held is not tried again, so that the matrix can
be run in pieces (--faults-only KIND:STAGE) and gone on with. `table.py` makes README.md's table of the lines.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from faults import results, stages
from faults.kinds import CELLS, KINDS
from faults.results import HELD, Result, is_well
from faults.trial import trial_of


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    stages.write_inputs(folder)
    return folder


def _asked(config: pytest.Config, kind: str, stage: str) -> bool:
    only = config.getoption("--faults-only")
    return not only or any(f"{kind}:{stage}".startswith(one) or one in (f":{stage}", kind) for one in only)


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "stage"), [(kind, stage) for kind, cell in CELLS.items() for stage in cell])
def test_cell(request: pytest.FixtureRequest, inputs: Path, tmp_path: Path, kind: str, stage: str) -> None:
    if not _asked(request.config, kind, stage):
        pytest.skip("not among --faults-only")
    file = Path(str(request.config.getoption("--faults-results")))
    file.parent.mkdir(parents=True, exist_ok=True)
    known = results.last_of_each(file)
    trial = trial_of(stage, inputs, tmp_path / "OUT")
    failed = []
    points = KINDS[kind](trial, tmp_path)
    for point in points:
        before = known.get((kind, stage, point.name))
        if before is not None and is_well(before):
            continue
        began = time.monotonic()
        result = Result(kind, stage, point.name, point.strike(trial) or HELD, len(points))
        results.append(file, result, time.monotonic() - began)
        failed += [] if is_well(result) else [f"{point.name}: {result.outcome}"]
    assert not failed, "\n".join(failed)

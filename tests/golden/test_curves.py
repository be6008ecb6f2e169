"""A tiny run's numbers against those recorded: bit for bit on a machine like the one that recorded them, else to rounding."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from golden import curves

RECORDED = orjson.loads(curves.RECORDED.read_bytes())
# Another machine adds in another order. So do the layouts and the two kinds of kernels: by a third of these at most.
TOLERANCE = {
    "float32": dict.fromkeys(("loss", "grad_norm", "rewards", "start", "end"), 2e-5),
    "bfloat16": {"loss": 0.01, "grad_norm": 0.03, "rewards": 0.3, "start": 5e-4, "end": 0.02},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    curves.write_inputs(folder)
    return folder


def test_every_curve_is_recorded():
    assert set(RECORDED["curves"]) == {curve.name for curve in curves.CURVES}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("curve", curves.CURVES, ids=lambda curve: curve.name)
def test_numbers_do_not_move(curve: curves.Curve, inputs: Path, tmp_path: Path):
    exact = RECORDED["machine"] == curves.machine()
    found = curves.record(curve, inputs, tmp_path)
    assert not curves.differences(found, RECORDED["curves"][curve.name], {} if exact else TOLERANCE[curve.precision])


def test_a_number_that_moved_is_found():
    recorded = {"loss": [1.0, 2.0], "grad_norm": [3.0]}
    moved = {**recorded, "loss": [1.0, 2.0000001]}
    assert not curves.differences(recorded, recorded, {})
    assert curves.differences(moved, recorded, {})
    assert not curves.differences(moved, recorded, {"loss": 1e-6})
    assert curves.differences({**recorded, "loss": [1.0, float("nan")]}, recorded, {"loss": 1e-6})
    assert curves.differences({**recorded, "grad_norm": []}, recorded, {"grad_norm": 1})

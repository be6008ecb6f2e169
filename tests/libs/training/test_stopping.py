"""When a run ends before its last step, whatever clocks do."""

from __future__ import annotations

import time

import psutil
import pytest

from nemotron_dpo.training import stopping
from nemotron_dpo.training.stopping import Stop


@pytest.mark.usefixtures("megatron")
def test_a_clock_that_is_set_anew_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a year ahead and back, as NTP or a machine that wakes up does; new year and daylight saving are smaller."""
    age = time.time() - psutil.Process().create_time()
    stop, late = Stop(stopping.deadline(age + 600)), Stop(stopping.deadline(age + 5))
    real = time.time
    for jump in (0.0, 366 * 86400.0, -366 * 86400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert not stop.due(1.0)
        assert late.due(6.0)
    assert stop.due(601.0)
    assert stop.reason == "checkpointing.checkpoint_must_save_by"


@pytest.mark.usefixtures("megatron")
def test_a_deadline_counts_from_the_start_of_the_process() -> None:
    age = time.time() - psutil.Process().create_time()
    assert Stop(stopping.deadline(max(0.0, age - 1))).due(0.0)
    assert not Stop(stopping.deadline(age + 60)).due(0.0)
    assert stopping.deadline(None) is None

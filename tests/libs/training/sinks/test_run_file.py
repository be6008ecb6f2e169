"""run.json: how a run stands while it runs, after it ended in each way, and after it went on."""

from __future__ import annotations

from pathlib import Path
from signal import SIGHUP
from typing import Any

import orjson
import pytest

from nemotron_dpo.cli import Terminated
from nemotron_dpo.errors import UserError
from nemotron_dpo.training import sinks
from nemotron_dpo.training.record import Record
from nemotron_dpo.training.sinks import RecordedRun
from nemotron_dpo.training.sinks.run_file import open_sink

STEP = Record(7, "train", {"train/loss": 0.5})


def _read(folder: Path) -> dict[str, Any]:
    return orjson.loads((folder / "run.json").read_bytes())


def test_each_end_has_its_status(tmp_path: Path) -> None:
    for reason, status in ((None, "done"), ("SIGTERM", "stopped")):
        run = RecordedRun(tmp_path, facts={"device": "CPU"}, stopped_by=lambda reason=reason: reason)
        with sinks.opened(run) as recording:
            assert (_read(tmp_path)["status"], _read(tmp_path)["step"]) == ("running", 0)
            recording.write(STEP)
        ended = _read(tmp_path)
        assert [ended[name] for name in ("status", "reason", "step", "device")] == [status, reason, 7, "CPU"]


ENDS: list[tuple[BaseException, str, str]] = [
    (UserError("is odd", source="a"), "failed", "a: is odd"),
    (ValueError(), "failed", "ValueError"),
    (KeyError(15), "failed", "15"),
    (SystemExit(2), "failed", "2"),
    (KeyboardInterrupt(), "stopped", "SIGINT"),
    (Terminated(), "stopped", "SIGTERM"),
    (Terminated(SIGHUP), "stopped", "SIGHUP"),
]


@pytest.mark.parametrize(("error", "status", "reason"), ENDS, ids=[repr(case[0]) for case in ENDS])
def test_who_stops_a_run_does_not_make_it_fail(error: BaseException, status: str, reason: str, tmp_path: Path) -> None:
    """It is what dpo-runs says of its job."""
    with pytest.raises(type(error)), sinks.opened(RecordedRun(tmp_path)):
        raise error
    assert [_read(tmp_path)[name] for name in ("status", "reason")] == [status, reason]


def test_a_run_that_goes_on_lists_those_before_it(tmp_path: Path) -> None:
    """A process that is killed leaves a file that says running."""
    killed = open_sink(RecordedRun(tmp_path))
    killed.write(STEP)
    killed._write()
    with sinks.opened(RecordedRun(tmp_path, done=7, stopped_by=lambda: "SIGTERM")):
        pass
    with sinks.opened(RecordedRun(tmp_path, done=9)):
        pass
    earlier = _read(tmp_path)["earlier"]
    assert [(one["status"], one["reason"], one["step"]) for one in earlier] == [("killed", None, 7), ("stopped", "SIGTERM", 7)]
    with sinks.opened(RecordedRun(tmp_path)):
        pass
    assert _read(tmp_path)["earlier"] == []


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with sinks.opened(RecordedRun(tmp_path, done=3)):
        assert _read(tmp_path)["earlier"] == []

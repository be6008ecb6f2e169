"""How the points of a sweep are run: the first alone until it trains, as many at once as there are slots, to the end of all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron_dpo import processes
from nemotron_dpo.jobs.job import jobs_in
from nemotron_dpo.steps.sweep import local, record
from nemotron_dpo.steps.sweep.points import points

# In place of nemotron-steps: a job that is at its first stage for a while, then trains for a while, then ends as it was told.
JOB = """
import json, os, pathlib, sys, time
name, status = sys.argv[1:]
job = pathlib.Path(".nemotron/jobs") / f"20260101-000000-{name}"
def at(status, stage, reason=None):
    facts = {"status": status, "stage": stage, "reason": reason, "pid": os.getpid(), "host": os.uname().nodename}
    (job / ".new").write_text(json.dumps(facts))
    (job / ".new").rename(job / "state.json")
    with open("order.txt", "a") as order:
        order.write(f"{name} {stage if status == 'running' else status} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
if status == "9":
    sys.exit(9)
job.mkdir(parents=True)
at("running", "ref-logprobs")
time.sleep(0.3)
at("running", "dpo-train")
time.sleep(0.3 if status != "wait" else 60)
at("failed" if status != "0" else "done", "dpo-train", None if status == "0" else "it said why")
print("what the job printed")
sys.exit(int(status))
"""


def _sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, statuses: str, slots: local.Slots) -> tuple[list[str], list[str]]:
    """How each point ended, and what was said."""
    monkeypatch.chdir(folder)
    (folder / "job.py").write_text(JOB)
    (folder / "sweep").mkdir()
    monkeypatch.setattr(local, "_program", lambda: [sys.executable, "job.py"])
    said: list[str] = []
    grid = points([f"k={','.join(map(str, range(len(statuses.split()))))}"], "s")
    ends = dict(zip(grid, statuses.split(), strict=True))
    sweep = local.Sweep(
        grid,
        lambda point: [point.name, ends[point]],
        Path("sweep"),
        lambda jobs: record.write(Path("sweep"), ["x"], jobs),
        said.append,
    )
    jobs = local.run_points(sweep, slots)
    noted = json.loads((folder / "sweep" / "sweep.json").read_text())["points"]
    assert [point["status"] for point in noted] == [job.status for job in jobs]
    return [job.status for job in jobs], said


def _order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().splitlines()


@pytest.mark.slow
def test_one_after_the_other_and_a_failure_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, said = _sweep(monkeypatch, tmp_path, "0 3 9 0", local.Slots(1))
    assert statuses == ["done", "failed", "failed", "done"]
    assert said == [
        "1 of 4: k=0",
        "2 of 4: k=1",
        "k=1: failed (exit 3): it said why; the others go on",
        "3 of 4: k=2",
        "k=2: failed (exit 9); sweep/3.txt has what it said; the others go on",
        "4 of 4: k=3",
    ]
    assert [line.split()[:2] for line in _order(tmp_path)][:4] == [
        ["s-k=0", "ref-logprobs"], ["s-k=0", "dpo-train"], ["s-k=0", "done"], ["s-k=1", "ref-logprobs"],
    ]  # fmt: skip
    assert (tmp_path / "sweep" / "1.txt").read_text() == "what the job printed\n"
    shown = record.summary([record.PointJob(point) for point in points(["k=1"], "s")])
    assert [line.split() for line in shown.splitlines()][1] == ["k=1", "waiting", "-", "-", "-", "-"]


@pytest.mark.slow
def test_several_at_once_each_with_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, _ = _sweep(monkeypatch, tmp_path, "0 0 0", local.Slots(2, ("0", "1", "2", "3"), each=2))
    assert statuses == ["done"] * 3
    order = [line.split() for line in _order(tmp_path)]
    begun = order.index(["s-k=0", "dpo-train", "0,1"])
    assert order[:begun] == [["s-k=0", "ref-logprobs", "0,1"]]  # the others wait for what it scores
    assert ["s-k=1", "ref-logprobs", "2,3"] in order
    devices = {name: device for name, _, device in order}
    assert devices["s-k=2"] in ("0,1", "2,3")


@pytest.mark.slow
def test_a_job_of_the_same_name_that_another_sweep_made_meanwhile_is_not_the_point_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(seconds: float) -> None:
        folder = tmp_path / ".nemotron/jobs/20260101-000001-s-k=0"
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "state.json").write_text(json.dumps({"status": "failed", "pid": 1, "host": os.uname().nodename}))
        time.sleep(0.05)

    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=other))
    statuses, _ = _sweep(monkeypatch, tmp_path, "0 0", local.Slots(1))
    assert statuses == ["done", "done"]
    noted = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    assert [point["job"] for point in noted] == [f".nemotron/jobs/20260101-000000-s-k={number}" for number in (0, 1)]


def test_what_runs_is_ended_before_an_interrupt_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        time.sleep(0.05)
        if (tmp_path / "order.txt").is_file() and len(_order(tmp_path)) >= 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=interrupt))
    with pytest.raises(KeyboardInterrupt):
        _sweep(monkeypatch, tmp_path, "wait 0", local.Slots(1))
    noted = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    assert [point["status"] for point in noted] == ["killed", "waiting"]


# A sweep of one point, whose program is a job as JOB that ends as our programs do.
KILLED = """
import sys
from pathlib import Path
from nemotron_dpo.steps.sweep import local, record
from nemotron_dpo.steps.sweep.points import points
local._program = lambda: [sys.executable, "point.py"]
sweep = local.Sweep(points(["k=1"], "s"), lambda point: [], Path(), lambda jobs: record.write(Path(), ["x"], jobs), print)
local.run_points(sweep, local.Slots(1))
"""
POINT = """
import os, time
from pathlib import Path
import click
from nemotron_dpo import cli
from nemotron_dpo.steps.compile.job_state import stands

@click.command()
def command():
    job = Path(".nemotron/jobs/job")
    job.mkdir(parents=True)
    (job / "job.yaml").touch()
    with stands(job):
        Path("begun").touch()
        time.sleep(60)

cli.run(command, "point")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no other kernel tells a process that its parent is gone")
def test_a_sweep_that_is_killed_leaves_no_point_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "point.py").write_text(POINT)
    with subprocess.Popen([sys.executable, "-c", KILLED]) as sweep:
        try:
            _wait_for((tmp_path / "begun").is_file)
        finally:
            sweep.kill()
    (job,) = jobs_in(record.JOBS)
    try:
        _wait_for(lambda: record.state(job.folder)["status"] == "stopped", seconds=10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(str(record.state(job.folder)["pid"])), signal.SIGKILL)
    assert [one.status for one in jobs_in(record.JOBS)] == ["stopped"]
    noted = json.loads((tmp_path / "sweep.json").read_text())
    assert (noted["points"][0]["status"], noted["pid"]) == ("running", sweep.pid)
    assert not processes.may_live(noted)


def _wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)

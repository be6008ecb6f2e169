"""Run the points of a sweep on this machine: `nemotron-steps run` for each, several at once where there are devices for it.

The first point is alone until its training begins: what it tokenized and scored is up to date for the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_dpo import parent
from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.sweep import record
from nemotron_dpo.steps.sweep.points import Point

_LOOK_SECONDS = 0.2
_TRAINING = "dpo-train"


@dataclass(frozen=True)
class Slots:
    """How many points run at once; where `devices` are GPUs each slot has its own of them, `each` many."""

    number: int
    devices: Sequence[str] = ()
    each: int = 1

    def environment(self, slot: int) -> dict[str, str]:
        """What the point in `slot` is told of its devices."""
        own = self.devices[slot * self.each : (slot + 1) * self.each]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if self.number > 1 and own else {}


@dataclass(frozen=True)
class Sweep:
    """What is run: the `points`, the `command` of each, where what they print is kept, and who is told.

    `note` takes the points whenever one begins or ends; `say` takes a line for a person.
    """

    points: Sequence[Point]
    command: Callable[[Point], Sequence[str]]
    folder: Path
    note: Callable[[Sequence[record.PointJob]], object]
    say: Callable[[str], object]


@dataclass(frozen=True)
class _Running:
    """A point that runs: its place among all, its process, the slot it has."""

    number: int
    process: subprocess.Popen[bytes]
    slot: int


def run_points(sweep: Sweep, slots: Slots) -> list[record.PointJob]:
    """Run every point to its end and return how each went. A point that fails does not stop the others.

    What a point prints is in NUMBER.txt; where only one runs at a time, what it says is on stderr as ever. Ctrl-C and SIGTERM
    reach all that run before they are raised here. Where this process is killed, they get SIGTERM (Linux).
    """
    before = frozenset(path.name for path in record.JOBS.glob("*"))
    jobs, running, waiting = [record.PointJob(point) for point in sweep.points], list[_Running](), [*range(len(sweep.points))]
    try:
        while waiting or running:
            while waiting and len(running) < slots.number and _may_begin(running, before):
                running.append(_begin(sweep, slots, waiting.pop(0), {one.slot for one in running}))
                _note_running(sweep, jobs, running[-1].number)
            time.sleep(_LOOK_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _end(sweep, one, jobs, before)
    except BaseException:
        _stop([one.process for one in running])
        for one in running:
            jobs[one.number] = _ended(sweep, one, before)
        sweep.note(jobs)
        raise
    return jobs


def _begin(sweep: Sweep, slots: Slots, number: int, taken: set[int]) -> _Running:
    """Start a point in the first slot that is not `taken`."""
    slot = next(slot for slot in range(slots.number) if slot not in taken)
    point = sweep.points[number]
    sweep.say(f"{number + 1} of {len(sweep.points)}: {' '.join(point.settings)}")
    log = sweep.folder / f"{number + 1}.txt"
    return _Running(number, _start(sweep.command(point), slots.environment(slot), log, quiet=slots.number > 1), slot)


def _note_running(sweep: Sweep, jobs: list[record.PointJob], number: int) -> None:
    jobs[number] = replace(jobs[number], status="running")
    sweep.note(jobs)


def _end(sweep: Sweep, one: _Running, jobs: list[record.PointJob], before: frozenset[str]) -> None:
    """Note how a point ended."""
    status = one.process.returncode
    job = jobs[one.number] = _ended(sweep, one, before)
    if job.status != "done":
        reason = record.state(job.folder).get("reason") if job.folder else None
        why = f": {reason}" if reason else f"; {sweep.folder / f'{one.number + 1}.txt'} has what it said"
        exit_status = status if status >= 0 else 128 - status
        sweep.say(f"{' '.join(job.point.settings)}: {job.status} (exit {exit_status}){why}; the others go on")
    sweep.note(jobs)


def _may_begin(running: Sequence[_Running], before: frozenset[str]) -> bool:
    """Whether another point may begin: the first one may, the others once its training has begun, or it ended."""
    first = next((one for one in running if one.number == 0), None)
    if first is None:
        return True
    job = record.job_of(first.process.pid, before)
    return job is not None and record.state(job).get("stage") == _TRAINING


def _start(argv: Sequence[str], environment: dict[str, str], log: Path, *, quiet: bool) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [*_program(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out if quiet else None,
            env={**os.environ, **environment, **parent.followed()},
            process_group=0,
        )


def _program() -> list[str]:
    return [executable("nemotron-steps")]


def _ended(sweep: Sweep, one: _Running, before: frozenset[str]) -> record.PointJob:
    """How the job of a point stands that ended; one that was never made failed, too."""
    job = record.job_of(one.process.pid, before)
    said = str(record.state(job).get("status")) if job else "failed"
    status = "done" if one.process.returncode == 0 else "failed" if said == "done" else said
    return record.PointJob(sweep.points[one.number], job, status)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """nemotron-steps passes the signal on to its stages, and ends once these have."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        process.wait()

"""What a sweep leaves: its folder, which job is that of each point, how each stands, and the table at its end.

A sweep that was killed leaves points as `running` in sweep.json: `host`, `pid` and `process` say whom to look for, and
state.json of a point's job how it ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

from nemotron_dpo import processes
from nemotron_dpo.outcome import margin, outcome, read_metrics
from nemotron_dpo.published import replacing
from nemotron_dpo.run_state import read_json, state_of
from nemotron_dpo.steps.compile.job_state import FILE as STATE
from nemotron_dpo.steps.compile.stage_cache import JOBS
from nemotron_dpo.steps.sweep.points import Point
from nemotron_dpo.steps.text import table

SWEEPS = JOBS.with_name("sweeps")
FILE, PAGE = "sweep.json", "compare.html"


@dataclass(frozen=True)
class PointJob:
    """The job of a point: its folder, None where there is none yet, and how it stands."""

    point: Point
    folder: Path | None = None
    status: str = "waiting"


def sweep_folder(called: str, now: datetime) -> Path:
    """`.nemotron/sweeps/<timestamp>-<name>` below the working folder; with a number where that is taken."""
    name = f"{now:%Y%m%d-%H%M%S}-{called}"
    taken = (SWEEPS / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
    return next(folder for folder in taken if not folder.exists())


def write(folder: Path, command: Sequence[str], jobs: Sequence[PointJob]) -> None:
    """Write sweep.json anew, whole."""
    points = [_as_data(job) for job in jobs]
    tree = {"command": list(command), "folder": str(Path.cwd()), **processes.this_one(), "points": points}
    with replacing(folder / FILE) as temporary:
        temporary.write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _as_data(job: PointJob) -> dict[str, object]:
    folder = None if job.folder is None else str(job.folder)
    return {"settings": job.point.settings, "name": job.point.name, "job": folder, "status": job.status}


def job_of(pid: int, since: frozenset[str]) -> Path | None:
    """The job that process `pid` of this machine made, none of those before, named `since`. Another sweep may share a name."""
    new = (path for path in JOBS.glob("*") if path.name not in since)
    return next((path for path in new if processes.is_ours(read_json(path / STATE), pid)), None)


def state(job: Path) -> Mapping[str, object]:
    """state.json of a job, with the status that it really has."""
    facts = read_json(job / STATE)
    return {**facts, "status": state_of(facts)}


def summary(jobs: Sequence[PointJob]) -> str:
    """A line for each point, with what was measured last on the first validation set, else in the last steps."""
    rows = [(" ".join(job.point.settings), job.status, *_figures(job.folder), str(job.folder or "-")) for job in jobs]
    return table(rows, ("point", "status", "loss", "accuracy", "margin", "job"))


def _figures(folder: Path | None) -> tuple[str, str, str]:
    rows = read_metrics(folder / "run" / "metrics.jsonl") if folder else []
    if not rows:
        return "-", "-", "-"
    made = outcome(rows)
    last = made.validations[0].last if made.validations else made.ends.last
    values = (last.get("loss"), last.get("accuracy"), margin(last))
    loss, accuracy, difference = ("-" if value is None else f"{value:.4f}" for value in values)
    return loss, accuracy, difference

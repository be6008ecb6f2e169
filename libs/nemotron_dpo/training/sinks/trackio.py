"""Trackio: a database in `LOG_DIR/exp_NNN/trackio`, or in TRACKIO_DIR; `TRACKIO_DIR=... trackio show` shows it."""

# its library is an extra of pyproject.toml
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import MACHINE, TrackedRun

_PROJECT = "nemotron-dpo"


def start(run: TrackedRun) -> TrackioRun:
    """Begin a run, or go on with the one that is known."""
    os.environ.setdefault("TRACKIO_DIR", str(run.folder))
    import trackio

    given = {"project": _PROJECT, "name": run.name, **run.given(), **run.known}
    config = {**run.config, "lineage": dict(run.lineage)}
    opened = trackio.init(
        **given, config=config, resume="allow" if run.known else "never", embed=False, auto_log_cpu=False, auto_log_gpu=False
    )
    known = {"name": opened.name, "project": given["project"]}
    run.remember(known)
    return TrackioRun(opened, _last_steps(**known) if run.known else {})


def _last_steps(project: str, name: str) -> dict[str, int]:
    """By metric, the last step that the run has in the database."""
    from trackio.sqlite_storage import SQLiteStorage

    return {metric: row["step"] for row in SQLiteStorage.get_logs(project, name) for metric in row}


class TrackioRun:
    """Logs a record under its step, and the machine's figures as those of the system.

    What an earlier process of the run logged of a step already stays as it is.
    """

    def __init__(self, opened: Any, last_steps: Mapping[str, int]) -> None:
        self._run, self._last_steps = opened, last_steps

    def write(self, record: Record) -> None:
        """Log the values of `record`."""
        if record.split == MACHINE:
            self._run.log_system(dict(record.values))
        elif record.step > max((self._last_steps.get(name, -1) for name in record.values), default=-1):
            self._run.log(dict(record.values), step=record.step)

    def close(self, *, failed: bool) -> None:
        """Write the rest."""
        self._run.finish()

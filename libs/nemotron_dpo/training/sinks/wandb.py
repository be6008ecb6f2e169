"""Weights & Biases. WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL and its other variables count as everywhere.

Where it cannot log in or reach the server, the run is kept offline in the log folder, and the line that sends it is said.
"""

# its library is an extra of pyproject.toml
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from typing import Any

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import MACHINE, MACHINE_STEP, TrackedRun


def start(run: TrackedRun) -> WandbRun:
    """Begin a run, or go on with the one that is known."""
    import wandb

    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds until it is offline
    settings = wandb.Settings(console="off", silent=True)
    arguments = {
        "name": run.name,
        **run.given(),
        "dir": str(run.folder),
        "config": {**run.config, "lineage": dict(run.lineage)},
        "settings": settings,
        "allow_val_change": True,
        **run.known,
    }
    opened = _opened(arguments, run)
    opened.define_metric(f"{MACHINE}/*", step_metric=MACHINE_STEP)
    run.remember({"id": opened.id, "project": opened.project, **({"entity": opened.entity} if opened.entity else {})})
    return WandbRun(opened, run)


def _opened(arguments: dict[str, Any], run: TrackedRun) -> Any:
    """wandb's run: as it is asked for, else offline. It never asks for a key, since this process has no terminal."""
    import wandb

    try:
        return wandb.init(**arguments, resume="allow")
    except wandb.Error as error:
        if arguments.get("mode", os.environ.get("WANDB_MODE")) in ("offline", "disabled", "dryrun"):
            raise
        opened = wandb.init(**{**arguments, "mode": "offline"}, resume="allow")
        why = " ".join(str(error).split()).rstrip(".")
        run.say(f"{why}: the run is kept offline: `wandb sync {opened.settings.sync_dir}` sends it")
        return opened


class WandbRun:
    """Logs a row a step. Steps that an earlier process of the run sent already stay as they are: W&B takes no step twice."""

    def __init__(self, opened: Any, run: TrackedRun) -> None:
        self._run = opened
        self._first = opened.starting_step  # the step of the first row that it takes
        if self._first > run.done + 1:
            run.say(f"run {opened.id} has steps up to {self._first - 1} already, which stay as they are")

    def write(self, record: Record) -> None:
        """Log the values; of the machine's figures as part of the row that is open."""
        if record.split == MACHINE:
            self._run.log(dict(record.values), commit=False)
        elif record.step >= self._first:
            self._run.log(dict(record.values), step=record.step)

    def close(self, *, failed: bool) -> None:
        """Send the rest, and end the run."""
        import wandb

        self._run.finish(exit_code=int(failed))
        wandb.teardown()

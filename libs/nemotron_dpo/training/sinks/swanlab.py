"""SwanLab. SWANLAB_MODE, SWANLAB_API_KEY and its other variables count.

Where it cannot log in or reach the server, the run is kept offline in the log folder, as is said.
"""

# its library is an extra of pyproject.toml
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from typing import Any

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import TrackedRun


def start(run: TrackedRun) -> SwanlabRun:
    """Begin a run, or go on with the one that is known, which SwanLab does online alone: offline it is a part of its own."""
    given = {"name": run.name, **run.given()}
    mode = given.pop("mode", None) or os.environ.get("SWANLAB_MODE") or "online"
    arguments = {**given, "logdir": str(run.folder), "config": {**run.config, "lineage": dict(run.lineage)}}
    opened = _opened(arguments, mode, run)
    run.remember({"id": opened.id})
    return SwanlabRun(opened)


def _opened(arguments: dict[str, Any], mode: str, run: TrackedRun) -> Any:
    """swanlab's run: as it is asked for, else offline. It never asks for a key, since this process has no terminal."""
    import swanlab

    if mode != "online":
        return swanlab.init(**arguments, mode=mode)
    known = {"id": run.known["id"], "resume": "allow"} if run.known else {}
    try:
        return swanlab.init(**arguments, **known, mode="online")
    except Exception as error:  # it has no class of its own for "no key" or "no server"
        opened = swanlab.init(**arguments, mode="offline")
        why = " ".join(str(error).split()).rstrip(".")
        run.say(f"{why}: the run is kept offline: `swanlab sync` sends what is in {run.folder}")
        return opened


class SwanlabRun:
    """Logs a record under its step."""

    def __init__(self, opened: Any) -> None:
        self._run = opened

    def write(self, record: Record) -> None:
        """Log the values of `record`."""
        self._run.log(dict(record.values), step=record.step)

    def close(self, *, failed: bool) -> None:
        """Send the rest, and say how the run ended."""
        state = {"state": "crashed", "error": "the run failed or was interrupted"} if failed else {"state": "success"}
        self._run.finish(**state)

"""TensorBoard: event files in `LOG_DIR/exp_NNN/tensorboard`; the machine's figures, by seconds, in its subfolder `machine`.

They are written by the tensorboard package itself: torch's SummaryWriter needs it too, and torch besides.
"""

# its library is an extra of pyproject.toml
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import MACHINE, MACHINE_STEP, TrackedRun, flat


def start(run: TrackedRun) -> EventFiles:
    """Open the files. What an earlier process of the run wrote of later steps than it goes on from is hidden."""
    events = EventFiles(run.folder)
    events.begin(run.done + 1 if run.done else 0)
    if not run.known:
        events.describe({"config": run.config, "lineage": run.lineage})
        run.remember({"described": True})
    return events


class EventFiles:
    """A file of a run's records and, once there are any, one of the machine's figures."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter
        self._folder = folder
        self._steps = EventFileWriter(str(folder), flush_secs=30)
        self._machine: Any = None

    def begin(self, step: int) -> None:
        """Hide what was written before of this step and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._steps.add_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def describe(self, facts: dict[str, Any]) -> None:
        """Write `facts` as hyperparameters and as text."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        config, lineage = facts["config"], {f"lineage.{name}": digest for name, digest in facts["lineage"].items()}
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in {**flat(config), **lineage}.items()
        }
        text = f"```\n{json.dumps(facts, indent=2, default=str)}\n```"
        for summary in (hparams_pb(plain, trial_id=self._folder.parent.name), text_pb("run", text)):
            self._steps.add_event(Event(wall_time=time.time(), step=0, summary=summary))

    def write(self, record: Record) -> None:
        """Write each value as a scalar."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        is_machine = record.split == MACHINE
        if is_machine and self._machine is None:
            self._machine = self._writer(str(self._folder / "machine"), flush_secs=30)
        values = [Summary.Value(tag=name, simple_value=v) for name, v in record.values.items() if name != MACHINE_STEP]
        event = Event(wall_time=time.time(), step=record.step, summary=Summary(value=values))
        (self._machine if is_machine else self._steps).add_event(event)

    def close(self, *, failed: bool) -> None:
        """Flush and close the files."""
        for writer in (self._steps, self._machine):
            if writer is not None:
                writer.close()

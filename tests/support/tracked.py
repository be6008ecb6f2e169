"""A run's records handed to trackers, as dpo-train does, without the training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_dpo.config import load_run, redact, run_tree
from nemotron_dpo.training import sinks
from nemotron_dpo.training.record import Record

LINEAGE = {"policy": "somebody/policy", "train.reference": "sha256:0123"}
NOT_MONITORED = "logger.monitor_gpus=false"


def recorded(
    folder: Path, overrides: Sequence[str], *, done: int = 0, say: Callable[[str], object] = print
) -> sinks.RecordedRun:
    """What the sinks of a run in `folder` are opened for."""
    folder.mkdir(parents=True, exist_ok=True)
    run = load_run(None, list(overrides))[0]
    return sinks.RecordedRun(folder, done, asdict(run.logger), redact(run_tree(run)), LINEAGE, say)


def records(first: int, last: int) -> list[Record]:
    """A record of each step, whose loss is 1 / step, and a validation after the last one; step 0 is a validation alone."""
    steps = [Record(step, "train", {"train/loss": 1 / step, "train/lr": 5e-7}) for step in range(max(first, 1), last + 1)]
    held_out = [Record(step, "validation-held", {"validation-held/loss": 0.5}) for step in {0, last} if step >= first]
    return sorted([*steps, *held_out], key=lambda record: record.step)


def track(folder: Path, overrides: Sequence[str], first: int, last: int) -> list[str]:
    """Hand the trackers that `overrides` ask for the records of the steps `first` to `last`; what was said, but for waiting."""
    said: list[str] = []
    with sinks.opened(recorded(folder, overrides, done=max(first - 1, 0), say=said.append)) as recording:
        for record in records(first, last):
            recording.write(record)
    # waiting depends on the machine, and these records have no pairs, which pairs_log.arrow says of a run that goes on
    return [line for line in said if not line.startswith("waiting for ") and "pairs_log.arrow: has no pairs" not in line]


def told(program: str, environment: Mapping[str, str], *arguments: object) -> Any:
    """What a Python `program` prints as JSON, in a process of its own that finds what `environment` says."""
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, env=dict(environment))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def log_folder(folder: Path) -> Path:
    """The log folder of the run in `folder`, which has one."""
    (experiment,) = (folder / "logs").iterdir()
    return experiment

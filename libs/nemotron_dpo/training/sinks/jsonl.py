"""metrics.jsonl: one JSON object a record and line, `{"step": N, NAME: VALUE, ...}` in NeMo-RL's names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from nemotron_dpo.machine_errors import named, named_file
from nemotron_dpo.streams import published_file
from nemotron_dpo.training.record import TRAIN, Record
from nemotron_dpo.training.sinks import RecordedRun

NAME = "metrics.jsonl"


def open_sink(run: RecordedRun) -> MetricsFile:
    """The metrics file of `run`, which every run has."""
    return MetricsFile(run.folder / NAME, done=run.done, say=run.say)


class MetricsFile:
    """Appends a line a record and flushes it, so that a killed run keeps what it measured.

    It starts empty, or goes on behind the first `done` steps of a run that is resumed; what that measured later is dropped,
    and `say` hears of what is damaged or missing before it.
    """

    def __init__(self, path: Path, *, done: int = 0, say: Callable[[str], object]) -> None:
        if done:
            for loss in _cut(path, done):
                say(f"warning: {path}: {loss}")
        self._path, self._file = path, named_file(path.open("ab" if done else "wb"), path)

    def write(self, record: Record) -> None:
        """Append `record`."""
        self._file.write(orjson.dumps({"step": record.step, **record.values}) + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with named(self._path):
            os.fsync(self._file.fileno())

    def close(self, *, failed: bool = False) -> None:
        """Close the file."""
        self._file.close()


def _cut(path: Path, done: int) -> list[str]:
    """Keep the records up to step `done`; of what is damaged or missing among them a line each."""
    *lines, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")  # what has no end was torn by a kill
    steps = [_step(line) for line in lines]
    kept = [number for number, step in enumerate(steps) if step is not None and step[0] <= done]
    with published_file(path) as file:
        file.writelines(lines[number] + b"\n" for number in kept)
    trained = {number for number, is_trained in filter(None, steps) if is_trained}
    damaged = [number for number, step in enumerate(steps, start=1) if step is None]
    missing = [step for step in range(1, done + 1) if step not in trained]
    return [
        *([f"line {listed(damaged)} is damaged and left out"] if damaged else []),
        *([f"has no record of training step {listed(missing)}"] if missing else []),
    ]


def _step(line: bytes) -> tuple[int, bool] | None:
    """The step of a line, and whether it is of training; None where it is no record."""
    try:
        record = orjson.loads(line)
        return (record["step"], f"{TRAIN}/loss" in record) if isinstance(record["step"], int) else None
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None


def listed(numbers: Sequence[int]) -> str:
    """The first ten of `numbers` and how many more there are."""
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")

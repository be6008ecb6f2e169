"""What a run leaves behind in numbers: metrics.jsonl, and training_info.json beside each checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

from nemotron_dpo.streams import published_file

Record = dict[str, float]


class MetricsFile:
    """Appends one JSON object a line and flushes it, so that a killed run keeps what it measured.

    It starts empty, or goes on behind the first `done` steps of a run that is resumed; what that measured later is dropped,
    and `say` hears of what is damaged or missing before it.
    """

    def __init__(self, path: Path | None, *, done: int = 0, say: Callable[[str], None]) -> None:
        if path is not None and done:
            for loss in _cut(path, done):
                say(f"warning: {path}: {loss}")
        self._file: BinaryIO | None = path.open("ab" if done else "wb") if path is not None else None

    def write(self, record: Record) -> None:
        """Append `record`; nothing on ranks that have no path."""
        if self._file is not None:
            self._file.write(orjson.dumps(record) + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Let what was written survive a crash of the machine, as a checkpoint does that is resumed from."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class Totals:
    """What a run counted and measured so far, and its last step's metrics under the names of checkpointing.metric_name."""

    steps: int = 0
    valid_tokens: float = 0
    seconds: float = 0.0
    first_loss: float | None = None
    latest: Record = field(default_factory=dict)
    reward_noise: float | None = None


@dataclass
class TrainingInfo:
    """NeMo-RL's training_info.json: where the run stands, and every metric that was measured at that step."""

    batches_per_epoch: int
    batch_size: int
    totals: Totals = field(default_factory=Totals)

    def add(self, record: Record) -> None:
        """Take in one record of the loop."""
        totals = self.totals
        if "train/loss" in record:
            totals.latest = {}  # a validation of the policy before this step says nothing of the one after it
        totals.latest.update({_selector(name): value for name, value in record.items() if name != "step"})
        if "train/loss" in record:
            totals.steps += 1
            totals.first_loss = record["train/loss"] if totals.first_loss is None else totals.first_loss
            totals.reward_noise = record.get("train/reward_noise", totals.reward_noise)
            totals.valid_tokens += record["train/global_valid_toks"]
            totals.seconds += record["timing/train/total_step_time"]

    def at(self, step: int) -> Record:
        """The content of training_info.json at `step`."""
        epoch, in_epoch = divmod(step, self.batches_per_epoch)
        return {
            "epoch": epoch,
            "step": in_epoch,
            "total_steps": step,
            "consumed_samples": step * self.batch_size,
            "total_valid_tokens": self.totals.valid_tokens,
            **self.totals.latest,
        }

    def summary(self) -> str:
        """One line of facts for the end of a run."""
        totals, latest = self.totals, self.totals.latest
        rate = totals.steps * self.batch_size / totals.seconds if totals.seconds else 0.0
        preferred = f"accuracy {latest['train:accuracy']:.3f}, " if latest["train:preference_loss"] else ""
        losses = f"loss {totals.first_loss:.4f} -> {latest['train:loss']:.4f}"
        return f"{totals.steps} steps, {losses}, {preferred}{rate:.2f} pairs/s"


def _cut(path: Path, done: int) -> list[str]:
    """Keep the records up to step `done`; of what is damaged or missing among them a line each."""
    *lines, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")  # what has no end was torn by a kill
    records = [_read(line) for line in lines]
    kept = [number for number, record in enumerate(records) if record and record["step"] <= done]
    with published_file(path) as file:
        file.writelines(lines[number] + b"\n" for number in kept)
    trained = {record["step"] for record in records if record and "train/loss" in record}
    damaged = [number for number, record in enumerate(records, start=1) if record is None]
    missing = [step for step in range(1, done + 1) if step not in trained]
    return [
        *([f"line {_listed(damaged)} is damaged and left out"] if damaged else []),
        *([f"has no record of training step {_listed(missing)}"] if missing else []),
    ]


def _read(line: bytes) -> Record | None:
    """The record of a line, or None where it is none."""
    try:
        record = orjson.loads(line)
        return record if isinstance(record["step"], int) else None
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")


def _selector(name: str) -> str:
    """`train/x` and `validation-n/x` as checkpointing.metric_name writes them: `train:x`, `val:validation-n_x`."""
    section, _, metric = name.rpartition("/")
    return f"val:{section}_{metric}" if section.startswith("validation-") else f"{section}:{metric}"

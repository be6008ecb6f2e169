"""What a run leaves behind in numbers: metrics.jsonl, and training_info.json beside each checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

from nemotron_dpo.streams import published_file

Record = dict[str, float]


class MetricsFile:
    """Appends one JSON object a line and flushes it, so that a killed run keeps what it measured.

    It starts empty, or goes on behind the first `done` steps of a run that is resumed; what that measured later is dropped.
    """

    def __init__(self, path: Path | None, *, done: int = 0) -> None:
        if path is not None and done and path.exists():
            _cut(path, done)
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
    """What a run counted so far and the latest value of every metric, under the names of checkpointing.metric_name."""

    steps: int = 0
    valid_tokens: float = 0
    seconds: float = 0.0
    first_loss: float | None = None
    latest: Record = field(default_factory=dict)


@dataclass
class TrainingInfo:
    """NeMo-RL's training_info.json: where the run stands and the latest value of every metric."""

    batches_per_epoch: int
    batch_size: int
    totals: Totals = field(default_factory=Totals)

    def add(self, record: Record) -> None:
        """Take in one record of the loop."""
        totals = self.totals
        totals.latest.update({_selector(name): value for name, value in record.items() if name != "step"})
        if "train/loss" in record:
            totals.steps += 1
            totals.first_loss = record["train/loss"] if totals.first_loss is None else totals.first_loss
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


def _cut(path: Path, done: int) -> None:
    """Keep the records up to step `done`; a line that a kill tore lies behind them."""
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if orjson.loads(line)["step"] > done:
                break
        except orjson.JSONDecodeError:
            break
        kept.append(line + b"\n")
    with published_file(path) as file:
        file.writelines(kept)


def _selector(name: str) -> str:
    """`train/x` and `validation-n/x` as checkpointing.metric_name writes them: `train:x`, `val:validation-n_x`."""
    section, _, metric = name.rpartition("/")
    return f"val:{section}_{metric}" if section.startswith("validation-") else f"{section}:{metric}"

"""What a run leaves behind in numbers: metrics.jsonl, and training_info.json beside each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

Record = dict[str, float]


class MetricsFile:
    """Appends one JSON object a line and flushes it, so that a killed run keeps what it measured."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self._file: BinaryIO | None = path.open("wb") if enabled else None

    def write(self, record: Record) -> None:
        """Append `record`; nothing on ranks that do not write."""
        if self._file is not None:
            self._file.write(orjson.dumps(record) + b"\n")
            self._file.flush()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class TrainingInfo:
    """NeMo-RL's training_info.json: where the run stands and the latest value of every metric."""

    batches_per_epoch: int
    batch_size: int
    total_valid_tokens: float = 0
    latest: Record = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        """Take in one record of the loop."""
        self.latest.update({_selector(name): value for name, value in record.items() if name != "step"})
        if "train/loss" in record:
            self.losses.append(record["train/loss"])
            self.total_valid_tokens += record["train/global_valid_toks"]
            self.seconds += record["timing/train/total_step_time"]

    def at(self, step: int) -> Record:
        """The content of training_info.json at `step`."""
        epoch, in_epoch = divmod(step, self.batches_per_epoch)
        return {
            "epoch": epoch,
            "step": in_epoch,
            "total_steps": step,
            "consumed_samples": step * self.batch_size,
            "total_valid_tokens": self.total_valid_tokens,
            **self.latest,
        }

    def summary(self) -> str:
        """One line of facts for the end of a run."""
        step = len(self.losses)
        rate = step * self.batch_size / self.seconds if self.seconds else 0.0
        preferred = f"accuracy {self.latest['train:accuracy']:.3f}, " if self.latest["train:preference_loss"] else ""
        return f"{step} steps, loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f}, {preferred}{rate:.2f} pairs/s"


def _selector(name: str) -> str:
    """`train/x` and `validation-n/x` as checkpointing.metric_name writes them: `train:x`, `val:validation-n_x`."""
    section, _, metric = name.rpartition("/")
    return f"val:{section}_{metric}" if section.startswith("validation-") else f"{section}:{metric}"

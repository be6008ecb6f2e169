"""What a run measures: a record a step and validation, and of all of them what training_info.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.objective.metric_names import selector

if TYPE_CHECKING:
    from nemotron_dpo.training.pair_values import PairValues

TRAIN = "train"
SAVING = "saving"  # the split of a record of how long a checkpoint took
STATE = "state/"  # before the names of the objective's numbers that go from step to step


@dataclass(frozen=True)
class Record:
    """What was measured in one training step, in one validation of the policy that a step left, or of saving it.

    split: `train`, `validation-NAME` or SAVING. values: by NeMo-RL's full names (`train/loss`), timings and memory besides.
    pairs: the same for each pair, where it is of pairs.
    """

    step: int
    split: str
    values: Mapping[str, float]
    pairs: PairValues | None = field(default=None, compare=False, repr=False)

    @property
    def is_training(self) -> bool:
        """True for the record of a training step."""
        return self.split == TRAIN

    @property
    def is_validation(self) -> bool:
        """True for the record of a validation."""
        return self.split.startswith("validation-")

    @property
    def reward_noise(self) -> float | None:
        """By how much a response's reward is uncertain, where this step measured it."""
        return self.values.get(f"{TRAIN}/reward_noise")

    @property
    def state(self) -> dict[str, float]:
        """The numbers of the objective that go from step to step, as this step left them."""
        start = f"{TRAIN}/{STATE}"
        return {name.removeprefix(start): value for name, value in self.values.items() if name.startswith(start)}


@dataclass
class Totals:
    """What a run counted and measured so far, and its last step's metrics under the names of checkpointing.metric_name.

    state: the numbers of the objective that go from step to step, as the last step left them. guards: what the guards remember.
    """

    steps: int = 0
    valid_tokens: float = 0
    seconds: float = 0.0
    latest: dict[str, float] = field(default_factory=dict)
    reward_noise: float | None = None
    state: dict[str, float] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingInfo:
    """NeMo-RL's training_info.json: where the run stands, and every metric that was measured at that step."""

    batches_per_epoch: int
    batch_size: int
    totals: Totals = field(default_factory=Totals)

    def add(self, record: Record) -> Record:
        """Take in one record of the loop, and return it with what the run counted so far."""
        totals, values = self.totals, record.values
        if record.is_training:
            totals.latest = {}  # a validation of the policy before this step says nothing of the one after it
            totals.steps += 1
            totals.reward_noise = record.reward_noise if record.reward_noise is not None else totals.reward_noise
            totals.state = record.state
            totals.valid_tokens += values["train/global_valid_toks"]
            totals.seconds += values["timing/train/total_step_time"]
            record = replace(record, values={**values, "train/total_valid_tokens": totals.valid_tokens})
        totals.latest.update({selector(name): value for name, value in values.items()})
        return record

    def at(self, step: int) -> dict[str, float]:
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

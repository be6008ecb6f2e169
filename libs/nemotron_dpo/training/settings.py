"""What the loop is told, cut by what it is about. Needs neither torch nor a model, so that a mistake is refused before one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.metric_names import TOKEN_VALUES
from nemotron_dpo.preferences.packing import pack
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batches_per_epoch
from nemotron_dpo.wording import counted

if TYPE_CHECKING:
    from nemotron_dpo.objective.protocol import Objective


@dataclass(frozen=True)
class Packing:
    """Pairs fill rows of at most `max_tokens`; with None, each row holds `pairs_per_row` pairs whatever their length."""

    max_tokens: int | None
    pairs_per_row: int = 1

    def bins(self, pairs: Pairs, rows: Sequence[int]) -> list[list[int]]:
        """`rows` divided into micro batches."""
        if self.max_tokens is None:
            return [list(rows[i : i + self.pairs_per_row]) for i in range(0, len(rows), self.pairs_per_row)]
        return [[rows[i] for i in members] for members in pack(pairs.num_tokens_of(rows).tolist(), self.max_tokens)]


@dataclass(frozen=True)
class BatchSettings:
    """Which pairs make a global batch, and how they are packed. `size` counts pairs over all ranks."""

    size: int
    packing: Packing
    seed: int = 42
    shuffle: bool = True


@dataclass(frozen=True)
class UpdateSettings:
    """How weights move: `learning_rates` has one entry a step, so its length is that of the run."""

    learning_rates: Sequence[float]
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ValidationSettings:
    """When validation sets are evaluated, and how much of each: `batches` of `batch_size` pairs, or all where `batches` is 0.

    period: steps from one validation to the next; 0 leaves those at start and end.
    """

    period: int = 0
    batches: int = 0
    batch_size: int = 8
    at_start: bool = True
    at_end: bool = True

    def is_due(self, step: int, last: int) -> bool:
        """Whether a validation follows `step` of a run whose last step is `last`; step 0 is the policy as it came."""
        if step == 0:
            return self.at_start
        return (self.period > 0 and step % self.period == 0) or (self.at_end and step == last)

    def num_pairs(self, available: int) -> int:
        """How many of the `available` pairs of a set are evaluated: the first so many."""
        return min(self.batches * self.batch_size, available) if self.batches > 0 else available


@dataclass(frozen=True)
class LoopSettings:
    """Everything that the loop is told.

    objective: as a run begins with it; where it has a state, a step leaves another one.
    save_period: steps from one checkpoint to the next; the last step has one in any case. ft_save_period: of further ones.
    gate_precision: check the readings of step 1 to this precision; None where the reference is another policy.
    token_metrics: measure TOKEN_METRICS of `metric_names` too.
    val_sets: stands in place of `validation` for the sets of these names.
    """

    objective: Objective
    batches: BatchSettings
    updates: UpdateSettings
    validation: ValidationSettings = ValidationSettings()
    save_period: int = 0
    ft_save_period: int = 0
    gate_precision: str | None = None
    token_metrics: bool = False
    val_sets: Mapping[str, ValidationSettings] = field(default_factory=dict)

    @property
    def token_values(self) -> frozenset[str]:
        """What the output layer is to compute of each response token besides its log-prob."""
        return self.objective.needs.token_values | (TOKEN_VALUES if self.token_metrics else frozenset())

    @property
    def num_steps(self) -> int:
        """The number of the last step."""
        return len(self.updates.learning_rates)

    def validation_of(self, name: str) -> ValidationSettings:
        """When the validation set `name` is evaluated, and how much of it."""
        return self.val_sets.get(name, self.validation)

    def validated(self, sets: Iterable[str], step: int) -> list[str]:
        """Those of the named sets that are evaluated after `step`; all of them where nothing is trained."""
        last = self.num_steps
        return [name for name in sets if last == 0 or self.validation_of(name).is_due(step, last)]

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`."""
        return step == self.num_steps or any(
            period > 0 and step % period == 0 for period in (self.save_period, self.ft_save_period)
        )


def num_steps(num_pairs: int, batch_size: int, max_steps: int, max_epochs: int, data_parallel: int) -> int:
    """Steps until the first of the two limits; where `max_steps` is 0 nothing is trained.

    Raises UserError for a batch that ranks or data cannot make up.
    """
    if max_steps == 0:
        return 0
    if batch_size % data_parallel:
        raise UserError(
            f"policy.train_global_batch_size {batch_size} does not divide over {data_parallel} data-parallel ranks",
            remedy=f"make it a multiple of {data_parallel}",
        )
    if num_pairs < batch_size:
        raise UserError(
            f"policy.train_global_batch_size {batch_size} is more than the {counted(num_pairs, 'pair')} given",
            remedy="lower it",
        )
    return min(max_steps, max_epochs * batches_per_epoch(num_pairs, batch_size))


def check_validation(sets: Mapping[str, Pairs], data_parallel: int) -> None:
    """Raise UserError for a validation set that cannot give every data-parallel rank a pair."""
    for name, pairs in sets.items():
        if len(pairs) < data_parallel:
            raise UserError(f"validation set {name} has {counted(len(pairs), 'pair')} for {data_parallel} data-parallel ranks")

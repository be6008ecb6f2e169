"""What an objective is: what it needs, its loss of each pair in named terms, its rewards, and what its first step must read.

Legend: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Needs:
    """What an objective must be given, besides the log-probs of the chosen responses. What it does not ask for it does not get.

    reference: log-probs of the same tokens under the reference policy.
    rejected: the rejected responses as well. An objective that compares two responses has rewards.
    token_values: names of what the output layer is to compute for each response token, besides its log-prob: `entropy`,
        `log_sum_squares` (of the probabilities of the vocabulary), `is_most_probable` (1 or 0).
    row_rewards: rewards of both responses that the rows of the data bring along.
    ordered_rewards: the chosen response has none that is lower than that of the other.
    whole_batch: all pairs of the global batch in one call, because the loss of a pair depends on the other pairs.
    state: numbers that go from step to step; the objective is then `Stateful`.
    tails: the parts of the sums that are of tokens past the number that the shorter response of the pair has.
    """

    reference: bool = False
    rejected: bool = True
    token_values: frozenset[str] = frozenset()
    row_rewards: bool = False
    whole_batch: bool = False
    state: bool = False
    tails: bool = False
    ordered_rewards: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What two objectives need together."""
        return Needs(
            reference=self.reference or other.reference,
            rejected=self.rejected or other.rejected,
            token_values=self.token_values | other.token_values,
            row_rewards=self.row_rewards or other.row_rewards,
            whole_batch=self.whole_batch or other.whole_batch,
            state=self.state or other.state,
            tails=self.tails or other.tails,
            ordered_rewards=self.ordered_rewards or other.ordered_rewards,
        )


@dataclass(frozen=True)
class FirstReading:
    """What a term reads for every pair as long as the policy is the reference.

    `formula` is how a person writes `value`. `slope` is the size of the term's derivative by a reward at that point: an error
    in the rewards moves the reading by at most twice as much times the slope, because a pair has two rewards.
    """

    value: float
    formula: str
    slope: float


@dataclass(frozen=True)
class Rewards:
    """What the objective makes of the two responses of each pair, float32 [P] each.

    `rounding` is the largest difference of the two that the order of sums alone may cause, where policy and reference are the
    same weights in differently packed rows.
    """

    chosen: Tensor
    rejected: Tensor
    rounding: Tensor


@dataclass(frozen=True)
class PairLosses:
    """Float32 [P] each: the loss, and its terms by name before any weights. Rewards where the objective compares responses."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    rewards: Rewards | None = None


class Objective(Protocol):
    """Immutable, and made from its settings alone."""

    @property
    def needs(self) -> Needs:
        """What `losses` reads."""
        ...

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The terms of the loss by name. None stands for a reading that depends on the data."""
        ...

    def losses(self, pairs: LossInputs, /) -> PairLosses:
        """The losses of `pairs`: those of a micro batch, or of the global batch where the objective needs all of it."""
        ...


class Stateful(Objective, Protocol):
    """An objective with numbers that go from step to step. A checkpoint holds them, so that a run resumes exactly."""

    @property
    def state(self) -> Mapping[str, float]:
        """The numbers by name."""
        ...

    def with_state(self, state: Mapping[str, float], /) -> Self:
        """The same objective with the numbers of another step."""
        ...

    def after(self, batch: LossInputs, /) -> Self:
        """The objective once it has seen the global batch. A step calls it once: before its losses where the objective needs
        the whole batch, since that is known then, and after them otherwise."""
        ...

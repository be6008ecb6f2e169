"""Binary classifier optimization, for pairs, with and without the running mean of rewards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class BcoPair:
    """-log sigmoid(beta r_c) - log sigmoid(-beta r_r) (Jung et al. 2024, arXiv 2404.04656), without the shift delta."""

    beta: float = settings.beta()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 each log is -ln 2, with the slope 1/2."""
        return reading(2 * math.log(2), "2 ln 2", slope=self.beta / 2)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards = pairs.rewards()
        return one_term(logistic(self.beta * rewards.chosen) + logistic(-self.beta * rewards.rejected), rewards)


@dataclass(frozen=True)
class Bco:
    """-log sigmoid(beta r_c - delta) - log sigmoid(delta - beta r_r) (Jung et al. 2024, arXiv 2404.04656).

    delta is the mean of beta r over all responses of the run so far, those of this step included, as TRL's BCOTrainer had it
    (which halves the sum: it averages over responses, and not over pairs). TRL's DPOTrainer had it as `bco_pair`, until that
    became the one above.
    """

    beta: float = settings.beta()
    reward_mean: float = settings.state()
    num_rewards: float = settings.state()

    needs = Needs(reference=True, whole_batch=True, state=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0, so is the mean: each log is -ln 2, with the slope 1/2."""
        return reading(2 * math.log(2), "2 ln 2", slope=self.beta / 2)

    @property
    def state(self) -> Mapping[str, float]:
        """The mean of rewards and how many they are."""
        return settings.state_of(self)

    def with_state(self, state: Mapping[str, float]) -> Self:
        """See Stateful."""
        return dataclasses.replace(self, **state)

    def after(self, batch: LossInputs) -> Self:
        """The mean moves by the share that the new rewards have in all."""
        rewards = batch.rewards()
        new = 2 * len(rewards.chosen)
        if not new:
            return self
        total, num = (
            self.beta * (rewards.chosen.detach().double() + rewards.rejected.detach().double()).sum().item(),
            self.num_rewards,
        )
        mean = self.reward_mean + (total - new * self.reward_mean) / (num + new)
        return dataclasses.replace(self, reward_mean=mean, num_rewards=num + new)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class; the mean has no gradient."""
        rewards, delta = pairs.rewards(), self.reward_mean
        return one_term(logistic(self.beta * rewards.chosen - delta) + logistic(delta - self.beta * rewards.rejected), rewards)


OBJECTIVES = (
    Entry(
        "bco_pair",
        BcoPair,
        formula="-log sigmoid(beta r_c) - log sigmoid(-beta r_r)",
        source="arXiv 2404.04656",
        use="beside dpo and sft, as a mixture (MPO, arXiv 2411.10442)",
        modifiers=ON_RATIOS,
    ),
    Entry(
        "bco",
        Bco,
        formula="-log sigmoid(beta r_c - delta) - log sigmoid(delta - beta r_r), delta the mean of beta r over the run so far",
        source="arXiv 2404.04656",
        use="each response is to be good or bad by itself, measured against the mean",
        modifiers=ON_RATIOS,
    ),
)

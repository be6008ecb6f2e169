"""Anchored preference optimization: which way the probabilities of both responses are to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class ApoZero:
    """1 - sigmoid(beta r_c) + sigmoid(beta r_r) (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7)."""

    beta: float = settings.beta()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 it is 1 - 1/2 + 1/2; a sigmoid has the slope 1/4."""
        return reading(1.0, "1", slope=self.beta / 4)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class; 1 - sigmoid(x) is sigmoid(-x), which does not round to 0."""
        rewards = pairs.rewards()
        return one_term((-self.beta * rewards.chosen).sigmoid() + (self.beta * rewards.rejected).sigmoid(), rewards)


@dataclass(frozen=True)
class ApoDown:
    """sigmoid(beta r_c) + 1 - sigmoid(beta d) (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8)."""

    beta: float = settings.beta()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 it is 1/2 + 1 - 1/2; the slope by beta r_c is 1/4 - 1/4, by beta r_r 1/4."""
        return reading(1.0, "1", slope=self.beta / 4)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards = pairs.rewards()
        margin = rewards.chosen - rewards.rejected
        return one_term((self.beta * rewards.chosen).sigmoid() + (-self.beta * margin).sigmoid(), rewards)


OBJECTIVES = (
    Entry(
        "apo_zero",
        ApoZero,
        formula="1 - sigmoid(beta r_c) + sigmoid(beta r_r)",
        source="arXiv 2408.06266, eq. 7",
        use="chosen responses are better than what the policy writes",
        modifiers=ON_RATIOS,
    ),
    Entry(
        "apo_down",
        ApoDown,
        formula="sigmoid(beta r_c) + 1 - sigmoid(beta d)",
        source="arXiv 2408.06266, eq. 8",
        use="chosen responses are worse than what the policy writes",
        modifiers=ON_RATIOS,
    ),
)

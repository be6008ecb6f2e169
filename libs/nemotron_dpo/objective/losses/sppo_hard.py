"""Self-play preference optimization with hard labels."""

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
class SppoHard:
    """(r_c - 1/(2 beta))^2 + (r_r + 1/(2 beta))^2 (Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with P = 1 and 0)."""

    beta: float = settings.beta(positive=True)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 each square is 1/(4 beta^2), with a slope of 2 / (2 beta)."""
        return reading(1 / (2 * self.beta**2), "1 / (2 beta^2)", slope=1 / self.beta)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards, target = pairs.rewards(), 1 / (2 * self.beta)
        return one_term((rewards.chosen - target).square() + (rewards.rejected + target).square(), rewards)


OBJECTIVES = (
    Entry(
        "sppo_hard",
        SppoHard,
        formula="(r_c - 1/(2 beta))^2 + (r_r + 1/(2 beta))^2",
        source="arXiv 2405.00675, eq. 4.7",
        use="rounds of self-play, with pairs that the policy itself has written",
        modifiers=ON_RATIOS,
    ),
)

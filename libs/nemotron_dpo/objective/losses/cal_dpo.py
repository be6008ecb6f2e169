"""Calibrated DPO: DPO whose rewards are to have a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class CalDpo:
    """-log sigmoid(beta d) + (r_c - 1/(2 beta))^2 + (r_r + 1/(2 beta))^2 (Xiao et al. 2024, arXiv 2412.14516)."""

    beta: float = settings.beta(positive=True)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 it is ln 2 and twice 1/(4 beta^2); the slope by a reward is beta/2 and 2/(2 beta)."""
        value = math.log(2) + 1 / (2 * self.beta**2)
        return reading(value, "ln 2 + 1 / (2 beta^2)", slope=self.beta / 2 + 1 / self.beta)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards, target = pairs.rewards(), 1 / (2 * self.beta)
        calibration = (rewards.chosen - target).square() + (rewards.rejected + target).square()
        return one_term(logistic(self.beta * (rewards.chosen - rewards.rejected)) + calibration, rewards)


OBJECTIVES = (
    Entry(
        "cal_dpo",
        CalDpo,
        formula="-log sigmoid(beta d) + (r_c - 1/(2 beta))^2 + (r_r + 1/(2 beta))^2",
        source="arXiv 2412.14516",
        use="rewards are to be comparable across prompts, and chosen responses are not to become less probable",
        modifiers=ON_RATIOS,
    ),
)

"""The log-ratio modulated loss that a language model discovered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import capped_exp, logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Discopop:
    """(1-m) (-log sigmoid(x)) + m e^(-x), x = beta d, m = sigmoid(x / tau) (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    tau is 0.05 in the paper and in TRL.
    """

    beta: float = settings.beta()
    average: bool = settings.average()
    discopop_tau: float = settings.setting(0.05, about="temperature of DiscoPOP's blend", more_than=0)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0, m is 1/2 and its slope 1/(4 tau): (1 - ln 2)/(4 tau) - (1-m)/2 - m is the slope by x."""
        slope = self.beta * abs((1 - math.log(2)) / (4 * self.discopop_tau) - 0.75)
        return reading((math.log(2) + 1) / 2, "(ln 2 + 1) / 2", slope)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. m e^(-x) is computed as one power: far below 0 its factors are 0 and infinite."""
        from torch.nn.functional import logsigmoid

        x, tau = pairs.logit(self.beta, average=self.average), self.discopop_tau
        loss = (-x / tau).sigmoid() * logistic(x) + capped_exp(logsigmoid(x / tau) - x)
        return one_term(loss, pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "discopop",
        Discopop,
        formula="(1-m) (-log sigmoid(x)) + m e^(-x), x = beta d, m = sigmoid(x / tau)",
        source="arXiv 2406.08414, eq. 5",
        use="a loss that was found by search; it does not fall everywhere with the margin",
        modifiers=ON_MARGIN,
    ),
)

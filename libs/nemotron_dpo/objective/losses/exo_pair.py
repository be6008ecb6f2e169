"""Efficient exact optimization, for pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class ExoPair:
    """q (log q - log(1-eps)) + (1-q) (log(1-q) - log eps) with q = sigmoid(beta d) (Ji et al. 2024, arXiv 2402.00856, eq. 16).

    It is the divergence of (q, 1-q) from the labels (1-eps, eps), infinite with eps = 0. The default is what older TRL took.
    """

    beta: float = settings.beta()
    average: bool = settings.average()
    label_smoothing: float = settings.label_smoothing(1e-3, minimum=0, more_than=0)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """With q = 1/2 both logs of it are -ln 2, and the slope by beta d is q (1-q) (log(eps) - log(1-eps))."""
        eps = self.label_smoothing
        slope = self.beta / 4 * math.log((1 - eps) / eps)
        return reading(-math.log(4 * eps * (1 - eps)) / 2, "-ln(4 eps (1-eps)) / 2", slope)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Where q rounds to 0, log q is beta d, so that q log q is 0 and not NaN."""
        from torch.nn.functional import logsigmoid

        logit, eps = pairs.logit(self.beta, average=self.average), self.label_smoothing
        chosen = logit.sigmoid() * (logsigmoid(logit) - math.log1p(-eps))
        rejected = (-logit).sigmoid() * (logsigmoid(-logit) - math.log(eps))
        return one_term(chosen + rejected, pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "exo_pair",
        ExoPair,
        formula="q (log q - log(1-eps)) + (1-q) (log(1-q) - log eps), q = sigmoid(beta d)",
        source="arXiv 2402.00856, eq. 16",
        use="the policy is to seek the mode of the preferences, and not to cover them",
        modifiers=ON_MARGIN,
    ),
)

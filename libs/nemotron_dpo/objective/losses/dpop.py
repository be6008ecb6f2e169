"""DPO-positive: DPO with a penalty where the chosen response becomes less probable."""

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
class Dpop:
    """-log sigmoid(beta (d - lambda max(0, -r_c))) (Pal et al. 2024, arXiv 2402.13228). lambda is 50 in the paper."""

    beta: float = settings.beta()
    dpop_lambda: float = settings.setting(50.0, about="weight of DPOP's penalty on a falling log-ratio", minimum=0)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 there is no penalty; below it the slope by r_c has lambda besides."""
        return reading(math.log(2), "ln 2", slope=self.beta * (1 + self.dpop_lambda) / 2)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards = pairs.rewards()
        margin = rewards.chosen - rewards.rejected
        return one_term(logistic(self.beta * (margin - self.dpop_lambda * (-rewards.chosen).relu())), rewards)


OBJECTIVES = (
    Entry(
        "dpop",
        Dpop,
        formula="-log sigmoid(beta (d - lambda max(0, -r_c)))",
        source="arXiv 2402.13228 (Smaug)",
        use="pairs whose responses differ in few tokens, where DPO makes the chosen one less probable",
        modifiers=ON_RATIOS,
    ),
)

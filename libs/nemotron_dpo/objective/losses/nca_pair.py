"""Noise contrastive alignment, for pairs."""

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
class NcaPair:
    """-log sigmoid(beta r_c) - 1/2 log sigmoid(-beta r_c) - 1/2 log sigmoid(-beta r_r) (Chen et al. 2024, arXiv 2402.05369)."""

    beta: float = settings.beta()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 each log is -ln 2; the slope by beta r_c is -1/2 + 1/4, by beta r_r 1/4."""
        return reading(2 * math.log(2), "2 ln 2", slope=self.beta / 4)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards = pairs.rewards()
        chosen, rejected = self.beta * rewards.chosen, self.beta * rewards.rejected
        return one_term(logistic(chosen) + (logistic(-chosen) + logistic(-rejected)) / 2, rewards)


OBJECTIVES = (
    Entry(
        "nca_pair",
        NcaPair,
        formula="-log sigmoid(beta r_c) - 1/2 log sigmoid(-beta r_c) - 1/2 log sigmoid(-beta r_r)",
        source="arXiv 2402.05369",
        use="the probability of chosen responses is not to fall, as it does with DPO",
        modifiers=ON_RATIOS,
    ),
)

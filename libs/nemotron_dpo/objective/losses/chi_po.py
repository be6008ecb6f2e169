"""chi-squared preference optimization: DPO with a divergence that grows as fast as the ratio itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import capped_exp, logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class ChiPo:
    """-log sigmoid(clip(beta (phi(r_c) - phi(r_r)))), phi(r) = e^r + r (Huang et al. 2024, arXiv 2407.13399, alg. 1).

    The clip is to +-2 R_max, R_max the greatest reward there is; past it the slope is 0. The paper leaves R_max to the user.
    With the default, what is clipped has a sigmoid that differs from 0 or 1 by e^-20 = 2e-9. The exponent ends at 80.
    """

    beta: float = settings.beta()
    chi_po_r_max: float = settings.setting(10.0, about="greatest reward, to twice which chi_po clips", more_than=0)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """At 0 the margin is 0; phi has the slope 2 there."""
        return reading(math.log(2), "ln 2", slope=self.beta)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards, bound = pairs.rewards(), 2 * self.chi_po_r_max
        margin = self.beta * (_phi(rewards.chosen) - _phi(rewards.rejected))
        return one_term(logistic(margin.clamp(-bound, bound)), rewards)


def _phi(log_ratio: Tensor) -> Tensor:
    return capped_exp(log_ratio) + log_ratio


OBJECTIVES = (
    Entry(
        "chi_po",
        ChiPo,
        formula="-log sigmoid(clip(beta (phi(r_c) - phi(r_r)), +-2 R_max)), phi(r) = e^r + r",
        source="arXiv 2407.13399, alg. 1",
        use="the policy overfits pairs of few prompts: it is held closer to the reference than by the KL",
        modifiers=ON_RATIOS,
    ),
)

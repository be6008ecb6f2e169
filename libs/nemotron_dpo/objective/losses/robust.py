"""DPO that is unbiased where some labels are the wrong way round."""

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
class Robust:
    """[-(1-eps) log sigmoid(beta d) + eps log sigmoid(-beta d)] / (1 - 2 eps) (Chowdhury et al. 2024, arXiv 2403.00409).

    eps is the share of swapped labels; with eps = 0, the default as TRL's, it is DPO.
    """

    beta: float = settings.beta()
    average: bool = settings.average()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without a margin both logs are -ln 2, and the slope by beta d is [-(1-eps)/2 - eps/2] / (1 - 2 eps)."""
        return reading(math.log(2), "ln 2", slope=self.beta / 2 / (1 - 2 * self.label_smoothing))

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        from torch.nn.functional import logsigmoid

        logit, eps = pairs.logit(self.beta, average=self.average), self.label_smoothing
        loss = (eps * logsigmoid(-logit) - (1 - eps) * logsigmoid(logit)) / (1 - 2 * eps)
        return one_term(loss, pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "robust",
        Robust,
        formula="[-(1-eps) log sigmoid(beta d) + eps log sigmoid(-beta d)] / (1 - 2 eps)",
        source="arXiv 2403.00409",
        use="labels of which a known share (eps) is swapped",
        modifiers=ON_MARGIN,
    ),
)

"""Direct preference optimization, of summed and of averaged log-ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Dpo:
    """-log sigmoid(beta d), r the log-ratio of a response (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    With label smoothing eps it is conservative DPO: -(1-eps) log sigmoid(beta d) - eps log sigmoid(-beta d). With `average`, r
    is divided by the number of the response's tokens.
    """

    beta: float = settings.beta()
    average: bool = settings.average()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without a margin the loss is -log sigmoid(0); its slope by beta d there is eps sigmoid(0) - (1-eps) sigmoid(0)."""
        return reading(math.log(2), "ln 2", slope=self.beta * (1 - 2 * self.label_smoothing) / 2)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        loss = logistic(pairs.logit(self.beta, average=self.average), self.label_smoothing)
        return one_term(loss, pairs.rewards(average=self.average))


@dataclass(frozen=True)
class DpoNorm:
    """DPO of log-ratios that are averaged over tokens, as Tulu 3 has it (Lambert et al. 2024, arXiv 2411.15124)."""

    beta: float = settings.beta()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """As of DPO."""
        return self._dpo.terms

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        return self._dpo.losses(pairs)

    @property
    def _dpo(self) -> Dpo:
        return Dpo(self.beta, True, self.label_smoothing)


OBJECTIVES = (
    Entry(
        "dpo",
        Dpo,
        formula="-(1-eps) log sigmoid(beta d) - eps log sigmoid(-beta d)",
        source="arXiv 2305.18290, eq. 7; with eps its authors' note on cDPO",
        use="the one to begin with",
        aliases=("sigmoid",),
        modifiers=ON_MARGIN,
    ),
    Entry(
        "dpo_norm",
        DpoNorm,
        formula="-(1-eps) log sigmoid(beta (r_c/n_c - r_r/n_r)) - eps log sigmoid(-beta (r_c/n_c - r_r/n_r))",
        source="arXiv 2411.15124 (Tulu 3)",
        use="responses of very different lengths; beta is then 2 to 10, Tulu 3 has 5",
        aliases=("sigmoid_norm",),
        modifiers=ON_MARGIN,
        usual_beta=(2.0, 10.0),
    ),
)

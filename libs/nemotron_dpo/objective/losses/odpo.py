"""DPO with an offset: the margin is to be larger where the rows' rewards are further apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import PREFERENCE, logistic, one_term
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Odpo:
    """-log sigmoid(beta d - alpha f(G)), f the log or the gap itself (Amini et al. 2024, arXiv 2402.10571).

    A gap below 0 has no log: a row whose chosen response has the lower reward is an error. A gap of 0 asks for nothing.
    That alpha is 1 where it is not given is ours.
    """

    beta: float = settings.beta()
    average: bool = settings.average()
    odpo_alpha: float = settings.setting(1.0, about="weight of ODPO's offset", minimum=0)
    odpo_gap: str = settings.setting("log", about="what ODPO's offset is of the gap of rewards", choices=("log", "identity"))

    @property
    def needs(self) -> Needs:
        """Only the log asks for an order of the rewards."""
        return Needs(reference=True, row_rewards=True, ordered_rewards=self.odpo_gap == "log" and self.odpo_alpha > 0)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The rows' rewards are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        logit = pairs.logit(self.beta, average=self.average)
        if self.odpo_alpha > 0:  # else nothing is asked for, and 0 times the log of 0 would be NaN
            logit = logit - self.odpo_alpha * (pairs.row_margin.log() if self.odpo_gap == "log" else pairs.row_margin)
        return one_term(logistic(logit), pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "odpo",
        Odpo,
        formula="-log sigmoid(beta d - alpha log G); with odpo_gap=identity, G in place of log G",
        source="arXiv 2402.10571",
        use="rows have rewards, and the better response is to win by as much as it is better",
        modifiers=ON_MARGIN,
    ),
)

"""Contrastive preference optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import NLL, PREFERENCE, logistic
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import WEIGHTED, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Cpo:
    """-log sigmoid(beta (l_c - l_r)) - alpha l_c/n_c (Xu et al. 2024, arXiv 2401.08417). Label smoothing is DPO's.

    The negative log-likelihood is a mean over the tokens of each chosen response; TRL has the mean over all chosen tokens of a
    micro batch. alpha is 1 in TRL.
    """

    beta: float = settings.beta()
    cpo_alpha: float = settings.setting(1.0, about="weight of CPO's negative log-likelihood of the chosen response", minimum=0)
    label_smoothing: float = settings.label_smoothing()

    needs = Needs()

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The log-probs that the policy starts from are the data's affair."""
        return {PREFERENCE: None, NLL: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Rewards are log-probs."""
        rewards, nll = pairs.logps(), -pairs.logps(average=True).chosen
        preference = logistic(self.beta * (rewards.chosen - rewards.rejected), self.label_smoothing)
        return PairLosses(preference + self.cpo_alpha * nll, {PREFERENCE: preference, NLL: nll}, rewards)


OBJECTIVES = (
    Entry(
        "cpo",
        Cpo,
        formula="-log sigmoid(beta (l_c - l_r)) - alpha l_c/n_c; with eps as dpo",
        source="arXiv 2401.08417",
        use="no reference, and the chosen responses are worth imitating; its authors translate",
        modifiers=WEIGHTED,
    ),
)

"""Odds ratio preference optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import NLL, PREFERENCE, log_odds, logistic
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import WEIGHTED, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Orpo:
    """-l_c/n_c - lambda log sigmoid(log odds(p_c) - log odds(p_r)), p = e^(l/n) (Hong et al. 2024, arXiv 2403.07691, eq. 6).

    odds(p) = p / (1 - p). The negative log-likelihood is a mean over the tokens of the chosen response, TRL's over those of the
    prompt as well. lambda is TRL's beta, with its default.
    """

    orpo_lambda: float = settings.setting(0.1, about="weight of ORPO's odds ratio; TRL calls it beta", minimum=0)

    needs = Needs()

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The log-probs that the policy starts from are the data's affair."""
        return {PREFERENCE: None, NLL: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Rewards are log-probs per token."""
        rewards = pairs.logps(average=True)
        nll, preference = -rewards.chosen, logistic(log_odds(rewards.chosen) - log_odds(rewards.rejected))
        return PairLosses(nll + self.orpo_lambda * preference, {PREFERENCE: preference, NLL: nll}, rewards)


OBJECTIVES = (
    Entry(
        "orpo",
        Orpo,
        formula="-l_c/n_c - lambda log sigmoid(log odds(p_c) - log odds(p_r)), p = e^(l/n), odds(p) = p / (1-p)",
        source="arXiv 2403.07691, eq. 6",
        use="no reference and no fine-tuning before; l_c is of the chosen response's tokens, without the prompt's",
        modifiers=WEIGHTED,
    ),
)

"""Simple preference optimization and AlphaPO: averaged log-probs as rewards, without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import PREFERENCE, capped_exp, logistic, one_term
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses, Rewards
from nemotron_dpo.objective.registry import WEIGHTED, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


def _gamma() -> float:
    about = "target of beta times the margin: TRL's simpo_gamma, with its default, and beta times SimPO's gamma_beta_ratio"
    return settings.setting(0.5, about=about, minimum=0)


@dataclass(frozen=True)
class Simpo:
    """-log sigmoid(beta (l_c/n_c - l_r/n_r) - gamma) (Meng et al. 2024, arXiv 2405.14734, eq. 6). Label smoothing is DPO's."""

    beta: float = settings.beta()
    gamma: float = _gamma()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs()

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The log-probs that the policy starts from are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Rewards are log-probs per token."""
        rewards = pairs.logps(average=True)
        return one_term(logistic(self.beta * (rewards.chosen - rewards.rejected) - self.gamma, self.label_smoothing), rewards)


@dataclass(frozen=True)
class AlphaPo:
    """-log sigmoid(beta (R_c - R_r) - gamma), R = (1 - p^-alpha) / alpha, p = e^(l/n) (Gupta et al. 2025, arXiv 2501.03884).

    The default of alpha is ours; TRL's is 0, which is SimPO. The exponent of p^-alpha ends at 80.
    """

    beta: float = settings.beta()
    gamma: float = _gamma()
    alphapo_alpha: float = settings.setting(0.25, about="alpha of AlphaPO's reward: 0 is SimPO's, and TRL's default")
    label_smoothing: float = settings.label_smoothing()

    needs = Needs()

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The log-probs that the policy starts from are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Rewards are R."""
        rewards = self._rewards(pairs)
        return one_term(logistic(self.beta * (rewards.chosen - rewards.rejected) - self.gamma, self.label_smoothing), rewards)

    def _rewards(self, pairs: LossInputs) -> Rewards:
        """R has the slope p^-alpha, by which the rounding of l/n is multiplied."""
        logps, alpha = pairs.logps(average=True), self.alphapo_alpha
        if alpha == 0:
            return logps
        powers = [capped_exp(-alpha * logp) for logp in (logps.chosen, logps.rejected)]
        chosen, rejected = ((1 - power) / alpha for power in powers)
        return Rewards(chosen, rejected, logps.rounding * powers[0].maximum(powers[1]).detach())


OBJECTIVES = (
    Entry(
        "simpo",
        Simpo,
        formula="-log sigmoid(beta (l_c/n_c - l_r/n_r) - gamma); with eps as dpo",
        source="arXiv 2405.14734, eq. 6",
        use="no reference; beta is 2 to 10 and gamma 0.3 to 1.6 times beta",
        modifiers=WEIGHTED,
        usual_beta=(2.0, 10.0),
    ),
    Entry(
        "alphapo",
        AlphaPo,
        formula="-log sigmoid(beta (R_c - R_r) - gamma), R = (1 - p^-alpha) / alpha, p = e^(l/n); with eps as dpo",
        source="arXiv 2501.03884",
        use="as simpo, where it makes both responses too improbable",
        modifiers=WEIGHTED,
        usual_beta=(2.0, 10.0),
    ),
)

"""DPO with a beta that follows the margins of the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs

LEAST_BETA = 1e-3  # the authors' code has the same: a beta of 0 or less would turn the preferences round


@dataclass(frozen=True)
class BetaDpo:
    """-log sigmoid(beta' d), beta' = beta (1 + alpha (M - M0)) (Wu et al. 2024, arXiv 2407.08639).

    M is the mean of d over the global batch, not multiplied by beta, as in the authors' code. M0 is its moving average, this
    batch included: M0 = momentum M0 + (1 - momentum) M, from 0. beta' is at least 0.001 and has no gradient. The filter of
    theirs, which leaves out a fifth of the pairs at random, is not part of it. The defaults are theirs.
    """

    beta: float = settings.beta()
    beta_dpo_alpha: float = settings.setting(0.6, about="how far beta_dpo's beta follows the margins", minimum=0)
    beta_dpo_momentum: float = settings.setting(0.9, about="momentum of beta_dpo's mean margin", minimum=0, less_than=1)
    batch_margin: float = settings.state()
    mean_margin: float = settings.state()

    needs = Needs(reference=True, whole_batch=True, state=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without margins beta' is beta, and the loss is that of DPO."""
        return reading(math.log(2), "ln 2", slope=self.beta / 2)

    @property
    def state(self) -> Mapping[str, float]:
        """M and M0."""
        return settings.state_of(self)

    def with_state(self, state: Mapping[str, float]) -> Self:
        """See Stateful."""
        return dataclasses.replace(self, **state)

    def after(self, batch: LossInputs) -> Self:
        """M is this batch's, and M0 moves towards it."""
        margin = batch.margin().detach().double()
        if not len(margin):
            return self
        mean, kept = margin.mean().item(), self.beta_dpo_momentum
        return dataclasses.replace(self, batch_margin=mean, mean_margin=kept * self.mean_margin + (1 - kept) * mean)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. Pairs that `after` was not given, as those of a validation, have the beta of the last batch."""
        factor = 1 + self.beta_dpo_alpha * (self.batch_margin - self.mean_margin)
        return one_term(logistic(pairs.logit(max(self.beta * factor, LEAST_BETA))), pairs.rewards())


OBJECTIVES = (
    Entry(
        "beta_dpo",
        BetaDpo,
        formula="-log sigmoid(beta (1 + alpha (M - M0)) d), M the mean of d over the batch, M0 its moving average",
        source="arXiv 2407.08639",
        use="pairs of very different difficulty",
        modifiers=ON_MARGIN,
    ),
)

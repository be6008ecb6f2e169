"""Reward-aware preference optimization: the margin is to be the one that the rewards of the row say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import PREFERENCE, one_term
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs


def _scale() -> float:
    return settings.setting(
        1.0, about="eta: how many nats of beta d a unit of the rows' rewards is; NeMo-Aligner has 1", more_than=0
    )


@dataclass(frozen=True)
class RpoSq:
    """(beta d - eta G)^2, G the difference of the rows' rewards (Adler et al. 2024, arXiv 2406.11704; NeMo-Aligner)."""

    beta: float = settings.beta()
    average: bool = settings.average()
    gt_reward_scale: float = _scale()

    needs = Needs(reference=True, row_rewards=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The rows' rewards are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        target = self.gt_reward_scale * pairs.row_margin
        loss = (pairs.logit(self.beta, average=self.average) - target).square()
        return one_term(loss, pairs.rewards(average=self.average))


@dataclass(frozen=True)
class RpoBwdKl:
    """a (log a - log b) + (1-a) (log(1-a) - log(1-b)), a = sigmoid(eta G), b = sigmoid(beta d) (as RpoSq)."""

    beta: float = settings.beta()
    average: bool = settings.average()
    gt_reward_scale: float = _scale()

    needs = Needs(reference=True, row_rewards=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The rows' rewards are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        loss = _divergence(self.gt_reward_scale * pairs.row_margin, pairs.logit(self.beta, average=self.average))
        return one_term(loss, pairs.rewards(average=self.average))


@dataclass(frozen=True)
class RpoFwdKl:
    """b (log b - log a) + (1-b) (log(1-b) - log(1-a)), a = sigmoid(eta G), b = sigmoid(beta d) (as RpoSq)."""

    beta: float = settings.beta()
    average: bool = settings.average()
    gt_reward_scale: float = _scale()

    needs = Needs(reference=True, row_rewards=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The rows' rewards are the data's affair."""
        return {PREFERENCE: None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        loss = _divergence(pairs.logit(self.beta, average=self.average), self.gt_reward_scale * pairs.row_margin)
        return one_term(loss, pairs.rewards(average=self.average))


def _divergence(of: Tensor, to: Tensor) -> Tensor:
    """KL of the Bernoulli distribution with logit `of` from the one with logit `to`."""
    from torch.nn.functional import logsigmoid

    up = of.sigmoid() * (logsigmoid(of) - logsigmoid(to))
    return up + (-of).sigmoid() * (logsigmoid(-of) - logsigmoid(-to))


_SOURCE = "NeMo-Aligner; arXiv 2406.11704"
_AB = "a = sigmoid(eta G), b = sigmoid(beta d)"
OBJECTIVES = (
    Entry(
        "rpo_sq",
        RpoSq,
        formula="(beta d - eta G)^2",
        source=_SOURCE,
        use="rows have rewards: a pair that is nearly even is not to be driven apart",
        modifiers=ON_MARGIN,
    ),
    Entry(
        "rpo_bwd_kl",
        RpoBwdKl,
        formula=f"a (log a - log b) + (1-a) (log(1-a) - log(1-b)), {_AB}",
        source=_SOURCE,
        use="as rpo_sq, as a soft label of DPO",
        modifiers=ON_MARGIN,
    ),
    Entry(
        "rpo_fwd_kl",
        RpoFwdKl,
        formula=f"b (log b - log a) + (1-b) (log(1-b) - log(1-a)), {_AB}",
        source=_SOURCE,
        use="as rpo_sq, and the policy may leave out what is less preferred",
        modifiers=ON_MARGIN,
    ),
)

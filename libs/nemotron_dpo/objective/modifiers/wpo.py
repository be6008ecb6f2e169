"""Weighted preference optimization: pairs that the policy itself might have written count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.modified import Modifier
from nemotron_dpo.objective.protocol import FirstReading, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs, Responses

_LOG_SUM_SQUARES = "log_sum_squares"


@dataclass(frozen=True)
class WpoWeighting:
    """A pair's loss times w_c w_r (Zhou et al. 2024, arXiv 2406.11827, eq. 2, as TRL aligns it).

    w = e^(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2]) of a response, without gradient. In a mixture, a part that
    compares no responses, as sft, is not weighted.
    """

    wpo_weighting: bool = settings.setting(False, about="weigh pairs by how probable the policy finds their responses")

    needs = Needs(token_values=frozenset({_LOG_SUM_SQUARES}))

    @property
    def is_neutral(self) -> bool:
        """Pairs count alike."""
        return not self.wpo_weighting

    def first(self, reading: FirstReading) -> None:
        """Weights are the data's affair."""

    def inputs(self, pairs: LossInputs) -> LossInputs:
        """As they are."""
        return pairs

    def weights(self, pairs: LossInputs) -> Tensor:
        """See the class."""
        return (_log_weight(pairs.chosen) + _log_weight(pairs.rejected)).exp()


def _log_weight(side: Responses) -> Tensor:
    return side.logp.detach() / side.num_tokens - side.token_means[_LOG_SUM_SQUARES].detach()


MODIFIER = Modifier(
    "wpo_weighting",
    WpoWeighting,
    formula="the loss becomes w_c w_r times it, w = e^(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2])",
    source="arXiv 2406.11827",
)

"""Length desensitization: tokens that the other response is too short to have count less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.modified import Modifier
from nemotron_dpo.objective.protocol import FirstReading, Needs

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs, Responses


@dataclass(frozen=True)
class LdAlpha:
    """Tokens past min(n_c, n_r) count alpha, for policy and reference (Liu et al. 2024, arXiv 2409.06411)."""

    ld_alpha: float = settings.setting(
        1.0, about="what tokens past the length of the shorter response count", minimum=0, maximum=1
    )

    needs = Needs(tails=True)

    @property
    def is_neutral(self) -> bool:
        """All tokens count alike."""
        return self.ld_alpha == 1

    def first(self, reading: FirstReading) -> FirstReading:
        """The log-ratio of every token is 0."""
        return reading

    def inputs(self, pairs: LossInputs) -> LossInputs:
        """See the class. Averages are over all tokens of a response still, as TRL has them."""
        return pairs.each(self._shortened)

    def weights(self, pairs: LossInputs) -> None:
        """None."""

    def _shortened(self, side: Responses) -> Responses:
        left_out, tails = 1 - self.ld_alpha, side.tails
        ratio = side.given_log_ratio
        if ratio is not None and tails.log_ratio is not None:
            ratio = ratio - left_out * tails.log_ratio
        return replace(side, logp=side.logp - left_out * tails.logp, given_log_ratio=ratio)


MODIFIER = Modifier(
    "ld_alpha",
    LdAlpha,
    formula="in r and l, tokens past min(n_c, n_r) count ld_alpha",
    source="arXiv 2409.06411",
)

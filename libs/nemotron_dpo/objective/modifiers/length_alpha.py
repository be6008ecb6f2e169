"""Length regularization: the margin is offset by the difference of lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.modified import Modifier
from nemotron_dpo.objective.protocol import FirstReading, Needs

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class LengthAlpha:
    """beta d + alpha (n_c - n_r) in place of beta d (Park et al. 2024, arXiv 2403.19159, eq. 9, R-DPO).

    A chosen response that is longer has part of its margin for nothing, so that a positive alpha is against length.
    """

    length_alpha: float = settings.setting(0.0, about="how much of beta d a token more of the chosen response is worth")

    needs = Needs()

    @property
    def is_neutral(self) -> bool:
        """There is no offset."""
        return self.length_alpha == 0

    def first(self, reading: FirstReading) -> None:
        """Lengths are the data's affair."""

    def inputs(self, pairs: LossInputs) -> LossInputs:
        """See the class."""
        return replace(pairs, offset=self.length_alpha * (pairs.chosen.num_tokens - pairs.rejected.num_tokens))

    def weights(self, pairs: LossInputs) -> None:
        """None."""


MODIFIER = Modifier(
    "length_alpha",
    LengthAlpha,
    formula="beta d becomes beta d + length_alpha (n_c - n_r)",
    source="arXiv 2403.19159, eq. 9 (R-DPO)",
)

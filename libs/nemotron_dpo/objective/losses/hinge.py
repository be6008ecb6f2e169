"""The hinge loss of SLiC and RSO on the margin of DPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_MARGIN, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - beta d) (Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2023, arXiv 2309.06657)."""

    beta: float = settings.beta()
    average: bool = settings.average()

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without a margin it is 1."""
        return reading(1.0, "1", slope=self.beta)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        loss = (1 - pairs.logit(self.beta, average=self.average)).relu()
        return one_term(loss, pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "hinge",
        Hinge,
        formula="max(0, 1 - beta d)",
        source="arXiv 2305.10425, 2309.06657",
        use="pairs that are told apart by a margin of 1 / beta are to be left alone",
        modifiers=ON_MARGIN,
    ),
)

"""Direct preference optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Dpo:
    """-log sigmoid(beta * (r_c - r_r)), r the log-ratio of a response (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    With `average`, r is divided by the number of the response's tokens.
    """

    beta: float
    average: bool = False

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without a difference of rewards the loss is -log sigmoid(0); its slope there is -beta * sigmoid(0)."""
        return {"preference": FirstReading(math.log(2), "ln 2", slope=self.beta / 2)}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        from torch.nn.functional import logsigmoid

        rewards = pairs.rewards(average=self.average)
        loss = -logsigmoid(self.beta * (rewards.chosen - rewards.rejected))
        return PairLosses(loss, {"preference": loss}, rewards)


OBJECTIVES = (
    Entry(
        "dpo",
        Dpo,
        formula="-log sigmoid(beta (r_c - r_r))",
        source="arXiv 2305.18290, eq. 7",
        use="the one to begin with",
        aliases=("sigmoid",),
    ),
)

"""Identity preference optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Ipo:
    """(r_c/n_c - r_r/n_r - 1/(2 beta))^2 (Azar et al. 2023, arXiv 2310.12036, eq. 17, where beta is tau).

    The log-ratios are averaged over tokens, which TRL's authors have from the authors of IPO. NeMo-Aligner and OpenRLHF sum
    them: `average` = False.
    """

    beta: float = settings.beta(positive=True)
    average: bool = settings.average(True)

    needs = Needs(reference=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """Without a margin it is (1/(2 beta))^2, and its slope by d is -2 / (2 beta)."""
        return reading(1 / (4 * self.beta**2), "1 / (4 beta^2)", slope=1 / self.beta)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        loss = (pairs.margin(average=self.average) - 1 / (2 * self.beta)).square()
        return one_term(loss, pairs.rewards(average=self.average))


OBJECTIVES = (
    Entry(
        "ipo",
        Ipo,
        formula="(r_c/n_c - r_r/n_r - 1/(2 beta))^2; with preference_average_log_probs=false, (r_c - r_r - 1/(2 beta))^2",
        source="arXiv 2310.12036, eq. 17",
        use="DPO overfits: the margin is to be 1/(2 beta), not as large as can be",
        modifiers=("f_divergence", *ON_RATIOS),
    ),
)

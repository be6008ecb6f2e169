"""Alignment by optimal transport: the distributions of log-ratios are compared, not the pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import logistic, one_term, reading
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs

_SORTED = "-(1-eps) log sigmoid(beta D) - eps log sigmoid(-beta D), D = "


@dataclass(frozen=True)
class AotPaired:
    """The loss of DPO of D = sort(l_c - l_r) - sort(the same of the reference) (Melnyk et al. 2024, arXiv 2406.05882).

    Both are sorted over the global batch. TRL sorts each micro batch of a device by itself, so its loss depends on their size.
    A pair's loss is that of the rank which its own l_c - l_r has.
    """

    beta: float = settings.beta()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs(reference=True, whole_batch=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """As of DPO: where the policy is the reference, both are sorted alike."""
        return _first(self.beta, self.label_smoothing)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. The reference's difference is m - d; D is summed so that it is exactly d where both have one order."""
        margin, rewards = pairs.logps(), pairs.rewards()
        m, d = margin.chosen - margin.rejected, rewards.chosen - rewards.rejected
        i, j = _order(m), _order(m - d)
        delta = (m[i] - m[j].detach()) + d[j].detach()
        return one_term(_of_pairs(logistic(self.beta * delta, self.label_smoothing), i), rewards)


@dataclass(frozen=True)
class AotUnpaired:
    """The loss of DPO of D = sort(r_c) - sort(r_r), over the global batch (Melnyk et al. 2024, arXiv 2406.05882).

    A pair's loss is that of the rank which its own r_c has.
    """

    beta: float = settings.beta()
    label_smoothing: float = settings.label_smoothing()

    needs = Needs(reference=True, whole_batch=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """As of DPO: where the policy is the reference, all are 0."""
        return _first(self.beta, self.label_smoothing)

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        rewards = pairs.rewards()
        i, j = _order(rewards.chosen), _order(rewards.rejected)
        delta = rewards.chosen[i] - rewards.rejected[j]
        return one_term(_of_pairs(logistic(self.beta * delta, self.label_smoothing), i), rewards)


def _order(values: Tensor) -> Tensor:
    return values.detach().argsort(stable=True)


def _of_pairs(of_ranks: Tensor, order: Tensor) -> Tensor:
    """From ranks back to pairs: rank k is that of pair order[k]."""
    return of_ranks[order.argsort()]


def _first(beta: float, label_smoothing: float) -> Mapping[str, FirstReading | None]:
    return reading(math.log(2), "ln 2", slope=beta * (1 - 2 * label_smoothing) / 2)


OBJECTIVES = (
    Entry(
        "aot_paired",
        AotPaired,
        formula=_SORTED + "sort(l_c - l_r) - sort(the same of the reference), over the global batch",
        source="arXiv 2406.05882",
        use="the chosen responses are to be better on the whole, not each in its pair; aot and aot_pair mean this one",
        aliases=("aot", "aot_pair"),
        modifiers=("ld_alpha",),
        notes={
            "aot": "means aot_paired, as in TRL",
            "aot_pair": "means aot_paired; TRL before 0.29 had what is aot_unpaired here under this name",
        },
    ),
    Entry(
        "aot_unpaired",
        AotUnpaired,
        formula=_SORTED + "sort(r_c) - sort(r_r), over the global batch",
        source="arXiv 2406.05882",
        use="as aot_paired, where chosen and rejected responses do not belong together; TRL before 0.29 called it aot_pair",
        modifiers=("ld_alpha",),
    ),
)

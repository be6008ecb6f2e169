"""Several objectives as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add, or_
from typing import TYPE_CHECKING

from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class WeightedSum:
    """The sum of the parts' losses times their weights. Its rewards are those of the first part that has any."""

    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        names = Counter(name for _, part in self.parts for name in part.terms)
        assert self.parts, "no part has a weight"
        assert max(names.values()) == 1, f"two parts have a term of one name: {names}"

    @property
    def needs(self) -> Needs:
        """What the parts need together."""
        return reduce(or_, (part.needs for _, part in self.parts))

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The terms of all parts."""
        return {name: reading for _, part in self.parts for name, reading in part.terms.items()}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        losses = [part.losses(pairs) for _, part in self.parts]
        loss = reduce(add, (weight * part.loss for (weight, _), part in zip(self.parts, losses, strict=True)))
        terms = {name: term for part in losses for name, term in part.terms.items()}
        return PairLosses(loss, terms, next((part.rewards for part in losses if part.rewards), None))


def weighted_sum(*parts: tuple[float, Objective]) -> WeightedSum:
    """The sum of (weight, objective); what has weight 0 is left out, so that nothing is computed or read for it."""
    return WeightedSum(tuple((weight, part) for weight, part in parts if weight))

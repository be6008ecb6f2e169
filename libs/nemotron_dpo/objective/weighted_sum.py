"""Several objectives as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add, or_
from typing import TYPE_CHECKING, Self, cast

from nemotron_dpo.objective.formulas import PREFERENCE
from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses, Stateful
from nemotron_dpo.objective.settings import SettingError

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class WeightedSum:
    """The sum of the parts' losses times their weights. Its rewards are those of the first part that has any.

    It is `Stateful` where a part is, with the numbers of all parts.
    """

    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        assert self.parts, "no part has a weight"
        for kind in ((part.terms for _, part in self.parts), (state_of(part) for _, part in self.parts)):
            names = Counter(name for part in kind for name in part)
            assert max(names.values(), default=1) == 1, f"two parts have something of one name: {names}"

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

    @property
    def state(self) -> Mapping[str, float]:
        """The numbers of all parts."""
        return {name: value for _, part in self.parts for name, value in state_of(part).items()}

    def with_state(self, state: Mapping[str, float]) -> Self:
        """See Stateful."""
        return replace(self, parts=tuple((weight, with_state(part, state)) for weight, part in self.parts))

    def after(self, batch: LossInputs) -> Self:
        """See Stateful."""
        return replace(self, parts=tuple((weight, after(part, batch)) for weight, part in self.parts))


@dataclass(frozen=True)
class Named:
    """An objective in a mixture: its term "preference", and its state, have its name.

    So in a mixture of dpo and cpo there are the terms "dpo", "cpo" and "cpo_nll".
    """

    name: str
    objective: Objective

    @property
    def needs(self) -> Needs:
        """As without the name."""
        return self.objective.needs

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """See the class."""
        return {self._term(name): reading for name, reading in self.objective.terms.items()}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """As without the name."""
        losses = self.objective.losses(pairs)
        return replace(losses, terms={self._term(name): term for name, term in losses.terms.items()})

    @property
    def state(self) -> Mapping[str, float]:
        """The numbers of the objective, as name.number."""
        return {self._number(name): value for name, value in state_of(self.objective).items()}

    def with_state(self, state: Mapping[str, float]) -> Self:
        """See Stateful."""
        mine = {name: state[self._number(name)] for name in state_of(self.objective)}
        return replace(self, objective=with_state(self.objective, mine))

    def after(self, batch: LossInputs) -> Self:
        """See Stateful."""
        return replace(self, objective=after(self.objective, batch))

    def _term(self, term: str) -> str:
        return self.name if term in (PREFERENCE, self.name) else f"{self.name}_{term}"

    def _number(self, name: str) -> str:
        return f"{self.name}.{name}"


def weighted_sum(*parts: tuple[float, Objective]) -> WeightedSum:
    """The sum of (weight, objective); what has weight 0 is left out, so that nothing is computed or read for it."""
    return WeightedSum(tuple((weight, part) for weight, part in parts if weight))


def mixture(parts: Iterable[tuple[str, float, Objective]]) -> WeightedSum:
    """The sum of (name, weight, objective), whose terms have the names. Raises SettingError where a name comes twice."""
    parts = tuple(parts)
    for name, count in Counter(name for name, _, _ in parts).items():
        if count > 1:
            raise SettingError("preference_loss", f"has {name} {count} times: give it one weight")
    return weighted_sum(*((weight, Named(name, objective)) for name, weight, objective in parts))


def state_of(objective: Objective) -> Mapping[str, float]:
    """The numbers that go from step to step; none of an objective without state."""
    return cast(Stateful, objective).state if objective.needs.state else {}


def with_state(objective: Objective, state: Mapping[str, float]) -> Objective:
    """The objective with its own part of `state`."""
    if not objective.needs.state:
        return objective
    return cast(Stateful, objective).with_state({name: state[name] for name in state_of(objective)})


def after(objective: Objective, batch: LossInputs) -> Objective:
    """The objective once it has seen the global batch."""
    return cast(Stateful, objective).after(batch) if objective.needs.state else objective

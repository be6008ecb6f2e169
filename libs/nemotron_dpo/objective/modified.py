"""An objective with a modifier: a setting that has the same meaning with many objectives. modifiers/ has a file for each."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from nemotron_dpo.objective import registry, settings
from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses
from nemotron_dpo.objective.weighted_sum import after, state_of, with_state

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs

# The outermost first: weights are of the log-probs as they are, and a divergence is of log-ratios that are shortened already.
_ORDER = ("wpo_weighting", "ld_alpha", "f_divergence", "length_alpha")


class Change(Protocol):
    """What a modifier does. Immutable, and made from its settings alone."""

    @property
    def needs(self) -> Needs:
        """What it reads besides."""
        ...

    @property
    def is_neutral(self) -> bool:
        """Whether its settings say that it changes nothing."""
        ...

    def first(self, reading: FirstReading, /) -> FirstReading | None:
        """What a term reads first with it."""
        ...

    def inputs(self, pairs: LossInputs, /) -> LossInputs:
        """What the objective is given in place of `pairs`."""
        ...

    def weights(self, pairs: LossInputs, /) -> Tensor | None:
        """What each pair's loss is multiplied by, [P]; None for 1."""
        ...


@dataclass(frozen=True)
class Modifier:
    """A modifier as people find it: `make` is the dataclass that it is. Its name is that of its first setting."""

    name: str
    make: Callable[..., Change]
    formula: str
    source: str

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its settings, as they are in a config."""
        return settings.names(self.make)


@dataclass(frozen=True)
class Modified:
    """`objective` with `change`; `Stateful` where the objective is."""

    change: Change
    objective: Objective

    @property
    def needs(self) -> Needs:
        """What both need."""
        return self.change.needs | self.objective.needs

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The objective's."""
        return {name: reading and self.change.first(reading) for name, reading in self.objective.terms.items()}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class. A weight is that of every term."""
        losses, weights = self.objective.losses(self.change.inputs(pairs)), self.change.weights(pairs)
        if weights is None:
            return losses
        terms = {name: weights * term for name, term in losses.terms.items()}
        return replace(losses, loss=weights * losses.loss, terms=terms)

    @property
    def state(self) -> Mapping[str, float]:
        """The objective's."""
        return state_of(self.objective)

    def with_state(self, state: Mapping[str, float]) -> Self:
        """See Stateful."""
        return replace(self, objective=with_state(self.objective, state))

    def after(self, batch: LossInputs) -> Self:
        """See Stateful."""
        return replace(self, objective=after(self.objective, self.change.inputs(batch)))


@functools.cache
def modifiers() -> Mapping[str, Modifier]:
    """Every modifier by its name."""
    from nemotron_dpo.objective import modifiers as folder

    modules = (f"{folder.__name__}.{module.name}" for module in pkgutil.iter_modules(folder.__path__))
    found = {modifier.name: modifier for module in modules for modifier in [importlib.import_module(module).MODIFIER]}
    assert set(found) == set(_ORDER)
    return found


def modified(parts: Sequence[tuple[registry.Entry, Objective]], **values: Any) -> list[Objective]:
    """The objectives of `parts`, each beside the entry that made it, with the settings `values` of modifiers.

    Settings that change nothing are left out. A part that compares no responses, as sft, stays as it is where there are others.
    Raises SettingError for a value that a modifier may not have, and for a modifier that has no meaning with a part.
    """
    objectives = [objective for _, objective in parts]
    for change in changes(**values):
        for place, (entry, objective) in enumerate(parts):
            if objective.needs.rejected or len(parts) == 1:
                check_takes(entry, dataclasses.fields(change)[0].name)  # type: ignore[arg-type] - every change is a dataclass
                objectives[place] = Modified(change, objectives[place])
    return objectives


def changes(**values: Any) -> list[Change]:
    """What the settings `values` of modifiers say, the innermost first, without what is neutral."""
    unknown = set(values) - {name for modifier in modifiers().values() for name in modifier.settings}
    assert not unknown, f"no modifier has {unknown}"
    found = []
    for name in reversed(_ORDER):
        modifier = modifiers()[name]
        change = modifier.make(**{key: value for key, value in values.items() if key in modifier.settings})
        settings.check(change)
        found += [] if change.is_neutral else [change]
    return found


def check_takes(entry: registry.Entry, modifier: str) -> None:
    """Raise SettingError where the `modifier` has no meaning with the objective."""
    if modifier not in entry.modifiers:
        takes = ", ".join(other.name for other in registry.entries().values() if modifier in other.modifiers)
        raise settings.SettingError(modifier, f"has no meaning with {entry.name}: it goes with {takes}")

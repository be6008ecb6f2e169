"""Objectives by name. Each file in losses/ describes its own, and no other list of them exists.

A setting out of its range, or one that an objective does not take, is a `settings.SettingError`: a ValueError that has the name
of the setting, for a config to say in its own words.

A config makes an objective from names in three steps: `make` for each part of a mixture; `modified.modified` for what goes
across objectives (f_divergence, f_alpha, ld_alpha, length_alpha, wpo_weighting), which an entry says in `modifiers` that it
takes; and `weighted_sum.mixture`, which names the terms, where there are several.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.objective import losses, settings
from nemotron_dpo.objective.protocol import Objective

# What goes across objectives: see modifiers/. An objective whose loss is a function of beta d takes all of it. One that reads
# the log-ratios in another way has no meaning with a divergence or an offset of lengths; one without a reference has weights.
WEIGHTED = ("wpo_weighting",)
ON_RATIOS = ("ld_alpha", *WEIGHTED)
ON_MARGIN = ("f_divergence", "length_alpha", *ON_RATIOS)


@dataclass(frozen=True)
class Entry:
    """An objective as people find it.

    name, aliases: what a config may call it. make: the dataclass that it is, whose fields are its settings, by the names that
    they have in a config. formula, source: the loss of a pair, and the paper that it is from. use: when it is the one to take.
    modifiers: the names of those in modifiers/ that have a meaning with it. notes: what to tell a person who uses one of its
    names, where the field means two things by it. usual_beta: from what to what beta is with it, where that is far from DPO's.

    In a formula, l_c and l_r are log pi(y|x) of the chosen and of the rejected response, r_c and r_r the same minus
    log pi_ref(y|x), n_c and n_r the numbers of their tokens, d = r_c - r_r, G the difference of the rewards that the row brings
    along, and eps the label smoothing.
    """

    name: str
    make: Callable[..., Objective]
    formula: str
    source: str
    use: str
    aliases: tuple[str, ...] = ()
    modifiers: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    usual_beta: tuple[float, float] | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its settings, as they are in a config."""
        return settings.names(self.make)


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every objective by its own name, in alphabetical order."""
    found = [entry for module in _modules() for entry in importlib.import_module(module).OBJECTIVES]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


@functools.cache
def _by_any_name() -> Mapping[str, Entry]:
    named = [(name, entry) for entry in entries().values() for name in (entry.name, *entry.aliases)]
    assert len({name for name, _ in named}) == len(named), "two objectives have a name or an alias in common"
    return dict(named)


def find(name: str) -> Entry:
    """The objective that has `name` for a name or an alias. Raises KeyError where there is none."""
    return _by_any_name()[name]


def make(name: str, **values: Any) -> Objective:
    """The objective called `name`. Raises KeyError where there is none, and SettingError for a value that it does not take."""
    entry = find(name)
    for setting in values:
        if setting not in entry.settings:
            raise settings.SettingError(
                setting, f"means nothing to {entry.name}, whose settings are {', '.join(entry.settings)}"
            )
    objective = entry.make(**values)
    settings.check(objective)
    return objective


def _modules() -> list[str]:
    return [f"{losses.__name__}.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]

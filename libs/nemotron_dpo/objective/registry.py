"""Objectives by name. Each file in losses/ describes its own, and no other list of them exists."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.objective import losses
from nemotron_dpo.objective.protocol import Objective


@dataclass(frozen=True)
class Entry:
    """An objective as people find it.

    name, aliases: what a config may call it. make: the dataclass that it is, whose fields are its settings, by the names that
    they have in a config. formula, source: the loss of a pair, and the paper that it is from. use: when it is the one to take.
    """

    name: str
    make: Callable[..., Objective]
    formula: str
    source: str
    use: str
    aliases: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of its settings."""
        return tuple(field.name for field in dataclasses.fields(self.make))  # type: ignore[arg-type] - every objective is a dataclass


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


def make(name: str, **settings: Any) -> Objective:
    """The objective called `name`. Raises KeyError where there is none."""
    return find(name).make(**settings)


def _modules() -> list[str]:
    return [f"{losses.__name__}.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]

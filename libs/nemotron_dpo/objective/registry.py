"""Objectives by name. Each file in losses/ says the names of its own, and no other list of them exists."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_dpo.objective import losses
from nemotron_dpo.objective.protocol import Objective

Maker = Callable[..., Objective]


@functools.cache
def makers() -> Mapping[str, Maker]:
    """What makes an objective from its settings, by every name there is, in alphabetical order."""
    found: dict[str, Maker] = {}
    for module in pkgutil.iter_modules(losses.__path__):
        for name, maker in importlib.import_module(f"{losses.__name__}.{module.name}").OBJECTIVES.items():
            assert name not in found, f"two objectives are called {name}"
            found[name] = maker
    return dict(sorted(found.items()))


def make(name: str, **settings: Any) -> Objective:
    """The objective called `name`. Raises KeyError where there is none."""
    return makers()[name](**settings)

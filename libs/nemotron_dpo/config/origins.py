"""Where each value of a merged config comes from: file and line, variable, profile or override, whichever set it last.

A key may be spelled in several ways, so a layer is also said to set what changes when it is laid over those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemotron_dpo.config.layer import ConfigLayer, place
from nemotron_dpo.errors import UserError


def origins(layers: Sequence[ConfigLayer], build: Callable[[Sequence[ConfigLayer]], Mapping[str, Any]]) -> dict[str, str]:
    """Dotted key -> place, for every leaf that a layer sets; `build` makes the merged tree of some layers.

    Layers that make no config without the next ones are taken together with these.
    """
    found: dict[str, str] = {}
    below = _leaves(build([]))
    for number, layer in enumerate(layers, 1):
        try:
            merged = _leaves(build(layers[:number]))
        except UserError:
            continue
        for key, value in merged.items():
            where = place(layer, key, changed=below.get(key) != value)
            if where is not None:
                found[key] = where
        below = merged
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        deeper = isinstance(value, Mapping) and value
        leaves |= _leaves(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return leaves

"""Replace `~` in the paths of a config. Loading leaves it, since a run on a cluster means the home folder there."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from nemotron_dpo.paths import expand_home

T = TypeVar("T")


def with_home(config: T) -> T:
    """`config`, a dataclass, with home folders in the place of ~ in every field that names a path, also further down.

    Raises UserError for the home of a user that does not exist.
    """
    changed = {item.name: _expanded(getattr(config, item.name), item.metadata.get("is_path", False)) for item in fields(config)}  # type: ignore[arg-type] - T is a dataclass, which TypeVar cannot say
    return replace(config, **changed)  # type: ignore[type-var] - likewise


def _expanded(value: Any, is_path: bool) -> Any:
    if is_dataclass(value):
        return with_home(value)
    if isinstance(value, tuple):
        return tuple(_expanded(item, is_path) for item in value)
    return expand_home(value) if is_path and isinstance(value, str) else value

"""Every field of an architecture that was read from a stranger's file is of the kind that its class says.

Readers of families take many values as they stand: a text where a flag is due would count as true and train another model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nemotron_dpo.policy.architecture import Architecture

_TOKENS = "_token_id"  # may be 0; all other whole numbers are sizes and counts


def checked(architecture: Architecture) -> Architecture:
    """`architecture`. Raises ValueError where a field of it, or of one of its layers, is of another kind, or no size."""
    seen: set[int] = set()
    for name, value, hint in _leaves(architecture, seen):
        if not _fits(value, hint):
            raise ValueError(f"{name} is {value!r}")
        sizes = value if isinstance(value, list) else [value]
        if _TOKENS not in name and any(type(size) is int and size < 1 and hint is not float for size in sizes):
            raise ValueError(f"{name} is {value!r}")
    return architecture


def _leaves(owner: Any, seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, type) of what `owner` and the parts of it hold; a layer that many share is looked at once."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for field in fields(owner):
        value = getattr(owner, field.name)
        parts = value if isinstance(value, tuple) else (value,)
        if parts and all(is_dataclass(part) for part in parts):
            for part in parts:
                yield from _leaves(part, seen)
        else:
            yield field.name, value, _hints(type(owner))[field.name]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(one, inner[0]) for one in value)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint  # parts that are classes of their own are looked into, and never come here

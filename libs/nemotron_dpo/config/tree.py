"""A config as it is read: a tree of plain dicts and lists, which is rewritten in place."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.errors import UserError

Tree = dict[str, Any]


def set_key(section: Tree, key: str, value: Any, place: str) -> None:
    """Set `key`, a canonical name, to `value`. Raises UserError where another spelling has set it to another value."""
    if section.get(key) is not None and section[key] != value:
        raise UserError(f"is {section[key]} and, under another name, {value}", field=f"{place}.{key}", remedy="set one of them")
    section[key] = value


def mapping(section: Tree, key: str, place: str) -> Tree:
    """The mapping at `key`, made empty where there is none. Raises UserError where something else is there."""
    value = section.get(key)
    if value is None:
        value = section[key] = {}
    if not isinstance(value, dict):
        raise UserError(f"is {value!r} where a mapping is due", field=f"{place}.{key}")
    return value


def drop_empty(section: Tree, key: str) -> None:
    """Remove `key` from `section` where all of it was taken."""
    if section.get(key) == {}:
        del section[key]

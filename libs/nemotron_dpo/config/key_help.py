"""The keys of a config as text, from the dataclasses themselves: a section and what it is about, then key, type and default.

Of an objective's settings it is said what each does; of other keys the text of their section says what is not plain.
"""

from __future__ import annotations

import fnmatch
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_dpo.config.data_spellings import HELD_OUT_KEYS
from nemotron_dpo.config.dpo import DpoConfig, is_key
from nemotron_dpo.config.objective_table import settings_of_objectives
from nemotron_dpo.config.schema import DataConfig, DatasetConfig
from nemotron_dpo.config.values import kinds_of

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
# key, type, default, meaning
Row = tuple[str, str, str, str]


def key_help(cls: Any, pattern: str = "*") -> list[str]:
    """Lines on the keys of the dataclass `cls` that match the glob `pattern`, whole or by their last part."""
    lines: list[str] = []
    for section, about, rows in _sections(cls, ""):
        found = [row for row in rows if any(fnmatch.fnmatchcase(name, pattern) for name in (row[0], row[0].rpartition(".")[2]))]
        if found:
            head = textwrap.wrap(f"{section or 'the step'}: {about}", 118, initial_indent="# ", subsequent_indent="# ")
            lines += [*([""] if lines else []), *head, *_columns(found)]
    return lines


def _sections(cls: Any, prefix: str) -> Iterator[tuple[str, str, list[Row]]]:
    """(section, its docstring on one line, its rows) of `cls` and of the sections in it."""
    hints, settings = kinds_of(cls), settings_of_objectives() if cls is DpoConfig else {}
    keys = [item for item in fields(cls) if is_key(item)]
    rows: list[Row] = []
    for item in (item for item in keys if not is_dataclass(hints[item.name])):
        default, about = settings.get(item.name, (_default(item), ""))
        rows.append((f"{prefix}{item.name}", _kind(hints[item.name]), default, about))
    if cls is DataConfig:
        kinds = kinds_of(DatasetConfig)
        rows += [(f"{prefix}validation.{name}", _kind(kinds[name]), "null", "") for name in HELD_OUT_KEYS]
    yield prefix.rstrip("."), " ".join((inspect.getdoc(cls) or "").split()), rows
    for item in keys:
        if is_dataclass(hints[item.name]):
            yield from _sections(hints[item.name], f"{prefix}{item.name}.")


def _kind(hint: Any) -> str:
    """The type of a value in words: `text or null`, `a | b`, `list of text`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _kind(kind) for kind in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        is_by_name = get_origin(args[0]) is tuple and is_dataclass(get_args(args[0])[-1])
        return "a section for each name" if is_by_name else f"list of {_kind(args[0])}"
    return _WORDS.get(hint, "mapping" if origin is dict or is_dataclass(hint) else "list")


def _default(item: Field[Any]) -> str:
    value = None if item.default is MISSING else item.default
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _columns(rows: list[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]

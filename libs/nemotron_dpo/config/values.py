"""One value of a config as the kind that its key asks for. Numbers and booleans may be text, as environment variables are."""

from __future__ import annotations

import datetime
import functools
import math
import sys
from collections.abc import Mapping
from typing import Any, get_type_hints

from nemotron_dpo.errors import UserError

_DUE = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
_MOST = 1 << 64  # beyond it nothing that is computed of a count fits
WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


@functools.cache
def kinds_of(cls: Any) -> Mapping[str, Any]:
    """The kind of every field of the dataclass `cls`, by name, worked out once: Python compiles each annotation for it."""
    return get_type_hints(cls)


def as_kind(value: Any, kind: Any, key: str) -> Any:
    """`value` as `kind`. Numbers and booleans may be given as text, because environment variables are text."""
    if isinstance(value, str) and kind is not str:
        value = _parsed(value, kind)
    if kind is not float and isinstance(value, int) and abs(value) >= _MOST:
        raise UserError(f"is a number of {value.bit_length()} bits where one below 2**64 is due", field=key)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, key)
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    # without quotes YAML reads 10:00:00 as the number 36000, yes as true, and 2026-11-26 as a date
    if kind is str and isinstance(value, int | float | datetime.date):
        named = "true or false" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else "a date"
        raise UserError(f"is {named} to YAML ({spelled(value)}) where text is due", field=key, remedy="quote it")
    raise UserError(f"is {spelled(value)} where {_DUE[kind]} is due", field=key)


def _finite(value: float, key: str) -> float:
    if abs(value) > sys.float_info.max or math.isnan(value):
        said = f"a number of {value.bit_length()} bits" if isinstance(value, int) else value
        raise UserError(f"is {said} where a finite number is due", field=key)
    return float(value)


def _parsed(text: str, kind: Any) -> Any:
    try:
        return WORDS.get(text.lower(), text) if kind is bool else kind(text)
    except (TypeError, ValueError):
        return text


def spelled(value: Any) -> str:
    """`value` as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)

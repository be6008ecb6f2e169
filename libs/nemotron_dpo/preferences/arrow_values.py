"""Converts Arrow values to the values that JSON lines of the same rows would have given.

An Arrow struct has every field that any of its rows has, and a field that a row lacks is null in that row. Nobody wrote
these nulls, so they are left out, at any depth and at the top. A null in a list or a map was written, so it stays. The text
in a column of Arrow's JSON type is decoded. A value that JSON cannot express (a time, bytes, NaN, text that is not UTF-8)
becomes Unreadable, and the code that reads the column decides whether that is an error. A whole number in a column of
floats stays a float. Keys come in the order of the struct's fields, because Arrow does not keep the order of a row's keys.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import types

from nemotron_dpo.preferences.problems import Unreadable

Convert = Callable[[Any], Any]
_FAILURES = (ValueError, OverflowError, TypeError, pa.ArrowException)  # what as_py raises for a value Python cannot hold


def _tests(*names: str) -> list[Callable[[pa.DataType], bool]]:
    return [getattr(types, name) for name in names if hasattr(types, name)]  # an old pyarrow has no list or string views


_LISTS = _tests("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
_TEXTS = _tests("is_string", "is_large_string", "is_string_view")
_PLAIN = [*_TEXTS, types.is_boolean, types.is_integer, types.is_null]
_JSON, _JSON_KEY = "arrow.json", b"ARROW:extension:name"


class _Problem(Exception):
    """A value that JSON cannot express; the arguments are (reason, message)."""


def column_values(column: pa.Array, field: pa.Field) -> list[Any]:
    """The values of `column`, described by `field`: None for a null, Unreadable for what JSON cannot express."""
    convert = converter(field)
    try:
        values = column.to_pylist()
    except _FAILURES:
        return [_read_alone(value, convert) for value in column]
    return values if convert is None else [value if value is None else _converted(value, convert) for value in values]


def converter(field: pa.Field) -> Convert | None:
    """A function that turns a non-null value of pyarrow into its JSON value; None where the two are the same."""
    kind = field.type
    if _is_json(field):
        return _decoded
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return converter(pa.field("", kind.value_type))
    if any(is_kind(kind) for is_kind in _PLAIN):
        return None
    if any(is_kind(kind) for is_kind in _LISTS):
        return _list_converter(kind)
    if types.is_struct(kind):
        return _struct_converter(kind)
    if types.is_map(kind) and any(is_kind(kind.key_type) for is_kind in _TEXTS):
        return _map_converter(kind)
    if types.is_floating(kind):
        return _number
    return _exact_number if types.is_decimal(kind) else _refused(kind)


def _is_json(field: pa.Field) -> bool:
    """True where `field` has Arrow's JSON type.

    An old pyarrow does not know this type. There the field's metadata has the type's name.
    """
    kind = field.type
    named = (
        kind.extension_name if isinstance(kind, pa.BaseExtensionType) else (field.metadata or {}).get(_JSON_KEY, b"").decode()
    )
    return named == _JSON


def _list_converter(kind: Any) -> Convert | None:
    convert = converter(kind.value_field)
    return None if convert is None else lambda values: [v if v is None else convert(v) for v in values]


def _struct_converter(kind: pa.StructType) -> Convert:
    converts = {field.name: convert for field in kind if (convert := converter(field)) is not None}
    if not converts:
        return lambda value: {name: v for name, v in value.items() if v is not None}
    same: Convert = lambda value: value  # noqa: E731 - the name gives the lambda its type
    return lambda value: {name: converts.get(name, same)(v) for name, v in value.items() if v is not None}


def _map_converter(kind: pa.MapType) -> Convert:
    convert = converter(kind.item_field) or (lambda value: value)

    def read(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {name: value if value is None else convert(value) for name, value in items}
        if len(found) < len(items):
            raise _Problem("wrong type", "is a map with the same key twice")
        return found

    return read


def _decoded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Problem("broken JSON", f"is broken JSON at column {error.colno}: {error.msg}") from None


def _number(value: Any) -> float:
    if not math.isfinite(value):
        raise _Problem("wrong type", f"holds {float(value)}, which is no number of JSON")
    return float(value)


def _exact_number(value: decimal.Decimal) -> float:
    """The number that orjson would parse from the digits of `value`.

    An integer of more than 64 bits becomes a float, as it does in orjson.
    """
    whole = value == value.to_integral_value() and value.as_tuple().exponent == 0
    return int(value) if whole and -(1 << 63) <= value < 1 << 64 else float(value)


def _refused(kind: pa.DataType) -> Convert:
    def refuse(value: Any) -> Any:
        raise _Problem("wrong type", f"holds a value of Arrow's type {kind}, which JSON has not")

    return refuse


def _converted(value: Any, convert: Convert) -> Any:
    try:
        return convert(value)
    except _Problem as problem:
        return Unreadable(*problem.args)


def _read_alone(scalar: pa.Scalar, convert: Convert | None) -> Any:
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8", "is not valid UTF-8")
    except _FAILURES as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        return Unreadable("wrong type", f"holds a value of Arrow's type {scalar.type} that cannot be read: {reason}")
    return value if value is None or convert is None else _converted(value, convert)

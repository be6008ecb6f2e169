"""Arrow's values against the JSON that they stand for, type by type; the expected ones are written out by hand."""

from __future__ import annotations

import datetime
import decimal
import math
import pickle
from typing import Any

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.arrow_values import column_values
from nemotron_dpo.preferences.problems import Unreadable

UTC = datetime.UTC
STRUCT = pa.struct([("a", pa.string()), ("b", pa.struct([("c", pa.int64()), ("d", pa.list_(pa.string()))]))])
TEXTS = ["one", None, ""]
# what it shows -> (Arrow's type, the values as pyarrow takes them, the values of JSON)
READ: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    "text": (pa.string(), TEXTS, TEXTS),
    "large text": (pa.large_string(), TEXTS, TEXTS),
    "text views": (pa.string_view(), TEXTS, TEXTS),
    "a dictionary of text": (pa.dictionary(pa.int8(), pa.string()), ["x", None, "x"], ["x", None, "x"]),
    "runs of text": (pa.run_end_encoded(pa.int32(), pa.string()), ["x", "x", None], ["x", "x", None]),
    "nothing but nulls": (pa.null(), [None, None], [None, None]),
    "truth": (pa.bool_(), [True, None, False], [True, None, False]),
    "unsigned": (pa.uint64(), [(1 << 64) - 1], [(1 << 64) - 1]),
    "floats": (pa.float64(), [1.5, 2.0], [1.5, 2.0]),
    "half floats": (pa.float16(), [np.float16(1.5)], [1.5]),
    "decimals": (pa.decimal128(6, 2), [decimal.Decimal("1.50"), decimal.Decimal("-2.00")], [1.5, -2.0]),
    "whole decimals": (pa.decimal256(40, 0), [decimal.Decimal(7), decimal.Decimal(1 << 64)], [7, float(1 << 64)]),
    "fields that the row lacks": (
        STRUCT,
        [{"a": "x"}, {"b": {"c": 1}}, {"b": {"d": ["y", None]}}, {}, None, {"a": "z", "b": {}}],
        [{"a": "x"}, {"b": {"c": 1}}, {"b": {"d": ["y", None]}}, {}, None, {"a": "z", "b": {}}],
    ),
    "lists of them": (pa.list_(STRUCT), [[{"a": "x"}, None, {}], [], None], [[{"a": "x"}, None, {}], [], None]),
    "large lists": (pa.large_list(STRUCT), [[{"a": "x"}]], [[{"a": "x"}]]),
    "list views": (pa.list_view(STRUCT), [[{"a": "x"}]], [[{"a": "x"}]]),
    "large list views": (pa.large_list_view(STRUCT), [[{"a": "x"}]], [[{"a": "x"}]]),
    "lists of a length": (pa.list_(STRUCT, 2), [[{"a": "x"}, {}], None], [[{"a": "x"}, {}], None]),
    "maps": (pa.map_(pa.string(), STRUCT), [[("k", {"a": "x"}), ("l", None)], []], [{"k": {"a": "x"}, "l": None}, {}]),
    "maps of numbers": (pa.map_(pa.string(), pa.int8()), [[("k", 1)], None], [{"k": 1}, None]),
    "JSON": (pa.json_(), ['{"a":null,"b":[1,2.0]}', '"t"', None, "null"], [{"a": None, "b": [1, 2.0]}, "t", None, None]),
}


def field(kind: pa.DataType) -> pa.Field:
    return pa.field("f", kind)


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if pa.types.is_run_end_encoded(kind):
        return pa.RunEndEncodedArray.from_arrays(range(1, len(values) + 1), pa.array(values, kind.value_type), kind)
    return pa.array(values, kind)


def test_values_are_those_of_json() -> None:
    for what, (kind, values, expected) in READ.items():
        found = column_values(column(kind, values), field(kind))
        assert found == expected, what
        assert [type(v) for v in found] == [type(v) for v in expected], what


def test_json_inside_of_lists_is_decoded() -> None:
    texts = pa.array(['{"zone":null}', None, "3"], pa.json_())
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), texts)
    assert column_values(lists, field(lists.type)) == [[{"zone": None}, None], [3]]
    structs = pa.StructArray.from_arrays([texts], names=["x"])
    assert column_values(structs, field(structs.type)) == [{"x": {"zone": None}}, {}, {"x": 3}]


def test_json_is_known_by_its_name_where_pyarrow_does_not_know_it() -> None:
    named = pa.field("f", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})
    assert column_values(pa.array(['"t"', "[1]"]), named) == ["t", [1]]


FAR = pa.array([1 << 60, 5], pa.int64())
# what it shows -> (the column, the reasons, None where a value can be read, and a part of every message)
BYTES = [b"a", b"\xff", None, b"b"]
UNREADABLE: dict[str, tuple[pa.Array, list[str | None], str]] = {
    "UTF-8": (pa.array(BYTES).view(pa.string()), [None, "invalid UTF-8", None, None], "is not valid UTF-8"),
    "UTF-8 in lists": (
        pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array([b"\xff", b"b"]).view(pa.string())),
        ["invalid UTF-8", None],
        "is not valid UTF-8",
    ),
    "times": (pa.array([datetime.datetime(2026, 1, 1), None]), ["wrong type", None], "Arrow's type timestamp[us], which"),
    "times out of range": (FAR.view(pa.timestamp("us")), ["wrong type", "wrong type"], "Arrow's type timestamp[us]"),
    "nanoseconds": (FAR.view(pa.timestamp("ns")), ["wrong type", "wrong type"], "Arrow's type timestamp[ns]"),
    "durations": (FAR.view(pa.duration("ns")), ["wrong type", "wrong type"], "Arrow's type duration[ns]"),
    "an unknown time zone": (FAR.view(pa.timestamp("s", "Mars/Olympus")), ["wrong type"] * 2, "tz=Mars/Olympus"),
    "dates": (pa.array([datetime.date(2026, 1, 1)]), ["wrong type"], "Arrow's type date32"),
    "bytes": (pa.array([b"a", None]), ["wrong type", None], "Arrow's type binary"),
    "not a number": (pa.array([math.nan, 1.0, -math.inf]), ["wrong type", None, "wrong type"], "is no number of JSON"),
    "a time deep inside": (
        pa.array([{"a": [{"t": datetime.datetime(2026, 1, 1)}]}, {"a": [{"t": None}]}]), ["wrong type", None], "timestamp[us]",
    ),
    "keys that are no text": (pa.array([[(1, "x")], None], pa.map_(pa.int8(), pa.string())), ["wrong type", None], "map<int8"),
    "a key twice": (pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8())), ["wrong type"], "same key twice"),
    "broken JSON": (pa.array(["{", "1"], pa.json_()), ["broken JSON", None], "is broken JSON at column"),
    "a field twice": (
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], fields=[pa.field("x", pa.int64())] * 2),
        ["wrong type"],
        "cannot be read",
    ),
}  # fmt: skip


def test_what_json_cannot_say_is_the_problem_of_one_value() -> None:
    for what, (values, reasons, message) in UNREADABLE.items():
        found = column_values(values, field(values.type))
        assert [v.reason if isinstance(v, Unreadable) else None for v in found] == reasons, what
        for value in (v for v in found if isinstance(v, Unreadable)):
            assert message in value.message, what
            assert "\n" not in value.message, what
            assert pickle.loads(pickle.dumps(value)) == value  # it travels to worker processes

"""Elements of JSON arrays and objects over several lines, cut out without parsing, against the standard library's parser."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.preferences import json_values
from nemotron_dpo.preferences.json_values import elements, objects
from nemotron_dpo.preferences.lines import DamagedFile, TooLong

LEAVES = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a\\"[]{},:\n\u20ac'), max_size=6)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\{', max_size=2), inner, max_size=3)
)
BLOCKS, INDENTS = st.integers(1, 9), st.none() | st.integers(0, 2)


def file(text: str | bytes) -> BinaryIO:
    return io.BytesIO(text.encode() if isinstance(text, str) else text)


def parsed(rows: Any) -> list[Any]:
    return [json.loads(row) for row in rows]


@given(values=st.lists(VALUES, max_size=4), block=BLOCKS, indent=INDENTS)
def test_elements(values: list[Any], block: int, indent: int | None) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_values, "_BLOCK", block)
        text = " \n" + json.dumps(values, indent=indent, ensure_ascii=False) + "\n\n"
        assert parsed(elements(file(text), 1 << 20)) == values


@given(values=st.lists(st.dictionaries(st.text("ab"), VALUES, max_size=3), max_size=4), block=BLOCKS, indent=INDENTS)
def test_objects(values: list[Any], block: int, indent: int | None) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_values, "_BLOCK", block)
        text = "\n".join(json.dumps(value, indent=indent) for value in values)
        assert parsed(objects(file(text), 1 << 20)) == values


BROKEN: dict[str, tuple[str, list[bytes], str | None]] = {
    "a comma too many": ('[{"a":1},]', [b'{"a":1}', b"]"], None),
    "an element missing": ("[1,,2]", [b"1", b",", b"2"], None),
    "no comma": ("[{} {}]", [b"{} {}"], None),
    "no end": ('[{"a":1}, {"b"', [b'{"a":1}'], "its JSON array has no end"),
    "an open string": ('["a]', [], "its JSON array has no end"),
    "lines of arrays": ("[1]\n[2]\n", [b"1"], "more follows after its JSON array"),
}


def test_what_is_no_array_is_told_and_what_was_whole_is_kept() -> None:
    for what, (text, expected, damage) in BROKEN.items():
        found, told = [], None
        try:
            for row in elements(file(text), 99):
                found.append(row)
        except DamagedFile as error:
            told = str(error)
        assert (found, told) == (expected, damage), what
    assert list(objects(file('{"a":1}\n{"b":'), 99)) == [b'{"a":1}', b'{"b":']
    assert list(objects(file('{"a":1}}{"b":1}'), 99)) == [b'{"a":1}', b"}", b'{"b":1}']


def test_a_value_that_is_too_long_is_not_held() -> None:
    class Endless(io.RawIOBase):
        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            self.left -= size
            return (
                b'[1,["'
                if self.left == (64 << 20) - size
                else b"a" * size
                if self.left > 0
                else b'"],2]'
                if self.left == 0
                else b""
            )

    tracemalloc.start()
    found = list(elements(cast(BinaryIO, Endless()), 1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b"1", TooLong(), b"2"]
    assert peak < 8 << 20

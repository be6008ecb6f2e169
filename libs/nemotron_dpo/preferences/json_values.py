"""Splits a file into JSON values: the elements of one array, or objects that are printed over several lines.

Each value is yielded as if it were a line, and only one value is held in memory at a time. This module finds only where a
value ends, by quotes and brackets. The code that parses the value finds out whether it is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from nemotron_dpo.preferences.lines import DamagedFile, TooLong

_BLOCK = 1 << 18
_MOST_LEVELS = 1100  # orjson takes 1024
_OUTSIDE, _INSIDE = re.compile(rb'["{}\[\],]'), re.compile(rb'["\\]')
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")
_BRACE_ALONE = re.compile(rb"\{[ \t\r]*\n")


def is_array(head: bytes) -> bool:
    """True where a text that begins with `head` is a JSON array."""
    return head.lstrip().startswith(b"[")


def is_over_lines(head: bytes) -> bool:
    """True where a text that begins with `head` begins with an object whose first line is a brace alone."""
    return _BRACE_ALONE.match(head.lstrip()) is not None


def elements(file: BinaryIO, max_bytes: int) -> Iterator[bytes | TooLong]:
    """The elements of the JSON array in `file`; TooLong stands for one of more than `max_bytes` bytes.

    An empty element, as in [1,,2], is not JSON. The comma or bracket that ends it is yielded in its place, so that its
    parser refuses it. Raises DamagedFile where the array has no end or more text follows it.
    """
    held, marked = _Held(max_bytes), _marked(file)
    depth, is_first = 0, True
    for text, mark in marked:
        if depth == 0:
            depth = int(mark == b"[")
            continue
        held.add(text)
        if depth > 1 or mark not in (b",", b"]"):
            held.add(mark)
            depth = _checked(depth + (mark in _OPENING) - (mark in _CLOSING))
            continue
        value = held.take()
        if value or not (is_first and mark == b"]"):
            yield value or mark
        is_first = False
        if mark == b"]":
            break
    else:
        raise DamagedFile("its JSON array has no end")
    if any((text + mark).strip() for text, mark in marked):
        raise DamagedFile("more follows after its JSON array")


def objects(file: BinaryIO, max_bytes: int) -> Iterator[bytes | TooLong]:
    """The objects that follow each other in `file`, and then the text that is left at its end, if any."""
    held, depth = _Held(max_bytes), 0
    for text, mark in _marked(file):
        held.add(text)
        held.add(mark)
        depth = _checked(max(0, depth + (mark in _OPENING) - (mark in _CLOSING)))
        if depth == 0 and mark in _CLOSING:
            yield held.take()
    if rest := held.take():
        yield rest


def _checked(depth: int) -> int:
    """`depth`. Raises DamagedFile beyond what any parser of JSON takes: a small file may unpack to brackets without end."""
    if depth > _MOST_LEVELS:
        raise DamagedFile(f"its JSON is nested more than {_MOST_LEVELS} levels deep")
    return depth


def _marked(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The text of `file` in pieces, each with the bracket or comma that ends it.

    Brackets and commas inside strings do not count. A piece that the end of a block ends comes with an empty mark.
    """
    in_string = is_escaped = False
    while block := file.read(_BLOCK):
        start = at = 0
        while found := (_INSIDE if in_string else _OUTSIDE).search(block, at + is_escaped):
            at, mark = found.end(), found[0]
            is_escaped = mark == b"\\"
            if mark == b'"':
                in_string = not in_string
            elif not is_escaped:
                yield block[start : at - 1], mark
                start = at
        is_escaped = is_escaped and at == len(block)
        yield block[start:], b""


class _Held:
    """The bytes of one value, which are collected until there are more than `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._text = bytearray()
        self._is_too_long = False

    def add(self, text: bytes) -> None:
        if not self._is_too_long:
            self._text += text
            self._is_too_long = len(self._text) > self._max_bytes

    def take(self) -> bytes | TooLong:
        """Return the value without the white space around it, or TooLong, and begin the next value."""
        value = TooLong() if self._is_too_long else bytes(self._text).strip()
        self._text, self._is_too_long = bytearray(), False
        return value

"""Odd inputs, made of sound ones by a few edits: of bytes, of lines, or of a tree of values. A number decides all of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

NOISE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**12, -(10**12), 10**23, 10**400, 2**31, 2**63, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", " ", "x" * 300, "\0", "a\nb\x1b[31m", "\u202e\u2028", "\udcff", "{{ 1 }}", "{% for"),
    *(
        "0",
        "-1",
        "1e400",
        "../../x",
        "/etc/passwd",
        "~",
        "${a}",
        "${oc.env:HF_TOKEN}",
        "null",
        "true",
        "1:2",
        "auto",
        "default",
    ),
    *([], {}, [[]], [None], [0], {"": None}, {"a": 1}, [{}], ["a", 1, None], [[1, 2], [3]]),
)
_SIGNS = "[]{}(),:;=|<>-?!&*#%@`'\"\\$~^+._\n\t \0"
_WORDS = (
    *(_SIGNS.encode()[at : at + 1] for at in range(len(_SIGNS))),
    *b"--- &a *a 0x 1e9 1_0 -1 null nan .inf 2026-01-01 04:00:00 ${ ${a} ${oc.env:X} ${oc.decode:[} [[ ]] {{ }} {% %}".split(),
    *(b"\r\n", b"<<: *a", b"!!int ", b"!!python/object:os.x ", b"9" * 400, b'"""', b"\\u0000", b"\\ud800", b"\x1b[2J"),
    *("\ufeff".encode(), "\u2028".encode(), b"\xff\xfe", b"\xed\xa0\x80", b"\xff"),
    *(b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"),
)
_DEEP = (b"[", b"{", b"{a: ", b'{"a":', b"- ", b"(", b"${", b"{{", b"a.", b"((", b"\x80")


class Edits:
    """A source of choices that `number` decides, and of edits by them."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)
        self.pick: Callable[[Sequence[Any]], Any] = self._random.choice

    def some(self) -> range:
        """A few, mostly one."""
        return range(self._random.choice((1, 1, 1, 2, 3, 6)))

    def content(self, sound: Any, written: Callable[[Any], bytes]) -> bytes:
        """`sound` as bytes, `written` after edits of its tree, or edited as text."""
        if isinstance(sound, bytes):
            return self.text(sound)
        content = written(self.tree(sound)) if self._random.random() < 0.8 else written(sound)
        return content if self._random.random() < 0.7 else self.text(content)

    def tree(self, value: Any) -> Any:
        """A copy of `value` with something else at a few places."""
        for _ in self.some():
            value = self._changed(value, depth=0)
        return value

    def text(self, content: bytes) -> bytes:
        """`content` after a few edits of bytes or of lines."""
        for _ in self.some():
            content = self._random.choice(_TEXT_EDITS)(self, content)
        return content

    def _changed(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict | list) and value and self._random.random() < 0.85:
            return self._within(value, depth)
        return self._instead(value)

    def _within(self, value: Any, depth: int) -> Any:
        copy = dict(value) if isinstance(value, dict) else list(value)
        place = self._random.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        how = self._random.random()
        if how < 0.08:
            del copy[place]
        elif how < 0.14:
            if isinstance(copy, dict):
                copy[self._random.choice(("", "a", "a.b", "x" * 300, str(place).upper(), f"{place} "))] = copy[place]
            else:
                copy.append(copy[place])
        elif how < 0.17 and isinstance(copy, dict):
            copy[self._random.choice((1, None, 2.5, True))] = copy.pop(place)
        else:
            copy[place] = self._changed(copy[place], depth + 1)
        return copy

    def _instead(self, value: Any) -> Any:
        how = self._random.random()
        if how < 0.1:
            return [value]
        if how < 0.15:
            return {"a": value}
        if how < 0.2 and isinstance(value, int | float) and not isinstance(value, bool):
            return -value
        if how < 0.25:
            return str(value)
        if how < 0.27:
            for _ in range(self._random.choice((60, 300))):
                value = [value]
            return value
        return self._random.choice(NOISE)

    def _place(self, content: bytes) -> int:
        return self._random.randint(0, len(content))

    def _span(self, content: bytes) -> tuple[int, int]:
        start = self._place(content)
        return start, min(len(content), start + self._random.choice((1, 1, 2, 4, 8, 40, 400)))

    def _flip(self, content: bytes) -> bytes:
        if not content:
            return b"\0"
        at = self._random.randrange(len(content))
        return content[:at] + bytes([content[at] ^ (1 << self._random.randrange(8))]) + content[at + 1 :]

    def _cut_out(self, content: bytes) -> bytes:
        start, stop = self._span(content)
        return content[:start] + content[stop:]

    def _cut_off(self, content: bytes) -> bytes:
        return content[: self._place(content)]

    def _insert(self, content: bytes) -> bytes:
        at, word = self._place(content), self._random.choice(_WORDS)
        return content[:at] + word + content[at:]

    def _overwrite(self, content: bytes) -> bytes:
        at, word = self._place(content), self._random.choice(_WORDS)
        return content[:at] + word + content[at + len(word) :]

    def _repeat(self, content: bytes) -> bytes:
        start, stop = self._span(content)
        return content[:stop] + content[start:stop] * self._random.choice((1, 2, 50)) + content[stop:]

    def _deep(self, content: bytes) -> bytes:
        at = self._place(content)
        return content[:at] + self._random.choice(_DEEP) * self._random.choice((20, 300, 5000)) + content[at:]

    def _lines(self, content: bytes) -> bytes:
        lines = content.split(b"\n")
        one, other = self._random.randrange(len(lines)), self._random.randrange(len(lines))
        how = self._random.randrange(4)
        if how == 0:
            lines[one], lines[other] = lines[other], lines[one]
        elif how == 1:
            del lines[one]
        elif how == 2:
            lines.insert(other, lines[one])
        else:
            lines[one] = b"  " + lines[one]
        return b"\n".join(lines)

    def _value(self, content: bytes) -> bytes:
        """Another value behind one of the signs that values follow."""
        lines = content.split(b"\n")
        at = self._random.randrange(len(lines))
        for sign in (b"=", b":"):
            name, found, _ = lines[at].partition(sign)
            if found:
                noise = self._random.choice(NOISE)
                text = noise if isinstance(noise, str) and self._random.random() < 0.5 else json.dumps(noise)
                lines[at] = name + found + b" " + text.encode(errors="surrogateescape")
                break
        return b"\n".join(lines)


_TEXT_EDITS = (
    Edits._flip,
    Edits._cut_out,
    Edits._cut_off,
    Edits._insert,
    Edits._insert,
    Edits._overwrite,
    Edits._repeat,
    Edits._deep,
    Edits._lines,
    Edits._value,
    Edits._value,
)

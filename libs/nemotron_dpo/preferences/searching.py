"""Where a text of the data stands in a text that a template rendered, given what templates do to texts on their way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_OPEN = r"<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]"
_CLOSE = r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]"
_TAGS = re.compile(f"({_OPEN}|{_CLOSE}|/no_think|/nothink|/think)")
_SWITCHES = ("/no_think", "/nothink", "/think")  # Qwen3, Nemotron and SmolLM3 take them for orders, some take them out
_THOUGHT = re.compile(f"(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSE})", re.DOTALL)
_OPENED = re.compile(f"({_OPEN})\\s*$")
_STRAY_CLOSE = re.compile(f".*(?:{_CLOSE})", re.DOTALL)

TRIMMED = "white space at the ends of texts changed"
NO_ORDERS = "/think or /no_think taken out"


@dataclass(frozen=True, slots=True)
class Found:
    """A text's end in the rendered text, and what the template changed in it, if anything."""

    end: int
    changed: str | None = None


def find_content(text: str, content: str, start: int, role: str) -> Found | None:
    """The first place of `content` in `text` from `start` on: as it is, without outer white space, or piece by piece.

    Pieces are what thinking tags part: templates write those anew, with line ends of their own. A tool's result may be
    written as a JSON string.
    """
    found = _find(text, content, start)
    if found is None and role in ("system", "user", "assistant"):
        pieces = _TAGS.split(content)
        return _find_pieces(text, pieces, start) if len(pieces) > 1 else None
    if found is None:
        return next((f for escaped in _escaped(content) if (f := _find(text, escaped, start))), None)
    return found


def find_without_reasoning(text: str, content: str, start: int) -> Found | None:
    """The same for an assistant's turn whose thoughts were left out."""
    rest = _THOUGHT.sub("\0", content)
    rest = _STRAY_CLOSE.sub("", rest)
    found = None if rest == content else _find_pieces(text, rest.split("\0"), start)
    return found and Found(found.end)


def without_open_thought(content: str, prompt: str) -> str:
    """`content` without the tag that opens its thought where the prompt ends with that tag: the model does not write it."""
    opened = _OPENED.search(prompt, max(0, len(prompt) - 40))
    bare = content.lstrip()
    return bare.removeprefix(opened.group(1)).lstrip() if opened and bare.startswith(opened.group(1)) else content


def _find(text: str, content: str, start: int) -> Found | None:
    bare = content.strip()
    at = text.find(bare, start)
    if at < 0:
        return None
    if len(bare) == len(content):
        return Found(at + len(bare))
    whole = text.find(content, max(0, at - len(content)))
    return Found(at + len(bare), TRIMMED) if whole < 0 else Found(whole + len(content))


def _find_pieces(text: str, pieces: list[str], start: int) -> Found | None:
    changed = TRIMMED
    for piece in pieces:
        at = text.find(piece.strip(), start)
        if at >= 0:
            start = at + len(piece.strip())
        elif piece in _SWITCHES:
            changed = NO_ORDERS
        else:
            return None
    return Found(start, changed)


def first_missing(text: str, content: str, start: int) -> str:
    """`content` from the first word on that `text`, from `start` on, does not continue with."""
    low, high = 0, len(content)
    while low < high:  # the longest beginning that is there
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text.find(content[:middle], start) >= 0 else (low, middle - 1)
    if low == len(content):
        return content
    within_a_word = not content[low].isspace()
    return content[max(content.rfind(space, 0, low) for space in " \n\t") + 1 if within_a_word else low :]


def is_written(text: str, needle: str) -> bool:
    """True where `text` has `needle`, as it is, as part of a JSON string, or with other white space between its words."""
    bare = needle.strip()
    if bare in text or any(escaped in text for escaped in _escaped(bare)):
        return True
    return len(bare.split()) > 1 and " ".join(bare.split()) in " ".join(text.split())


def _escaped(text: str) -> Iterator[str]:
    yield from (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))


def strings(value: Any) -> list[str]:
    """The texts in a value of any depth."""
    if isinstance(value, str):
        return [value]
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


def call_texts(calls: Any) -> Iterator[str]:
    """What must be written of calls of tools: names, names of arguments, and their values but for punctuation."""
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from strings(function.get("name"))
            yield from _scalars(function.get("arguments"))


def _scalars(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield str(value)


def tool_texts(tools: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """(name, what must be written) of each tool: its name and description, and those of its parameters.

    Templates write the rest in languages of their own: types as in TypeScript, a signature as in Python.
    """
    for tool in tools:
        function = tool["function"] if isinstance(tool.get("function"), dict) else tool
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        named = properties if isinstance(properties, dict) else {}
        described = [p.get("description") for p in named.values() if isinstance(p, dict)]
        yield str(function.get("name")), strings([function.get("name"), function.get("description"), *named, *described])

"""Find a text of the data in the text that a chat template rendered, allowing for the changes that templates make."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_OPEN = r"<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]"
_CLOSE = r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]"
_TAGS = re.compile(f"({_OPEN}|{_CLOSE}|/no_think|/nothink|/think)")
_SWITCHES = ("/no_think", "/nothink", "/think")  # Qwen3, Nemotron and SmolLM3 obey them; some templates remove them
_THOUGHT = re.compile(f"(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSE})", re.DOTALL)
_OPENED = re.compile(f"({_OPEN})\\s*$")
_STRAY_CLOSE = re.compile(f".*(?:{_CLOSE})", re.DOTALL)

TRIMMED = "white space at the ends of texts changed"
NO_ORDERS = "/think or /no_think taken out"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a found text ends in the rendered text (`end`, in characters), and what the template changed in it, if anything."""

    end: int
    changed: str | None = None


def find_content(text: str, content: str, start: int, role: str, *, nearest: bool = False) -> Found | None:
    """A place of `content` in `text` from `start` on; None where it is not there.

    `content` may stand in `text` as it is or without the white space at its ends. In a system, user or assistant turn it may
    also stand there piece by piece: thinking tags part the pieces, because templates rewrite the line ends around the tags.
    In other turns, such as a tool's result, it may stand there as a JSON string. Where it stands in several of these ways,
    the place is that of the least changed; with `nearest`, it is the one that ends first.
    """
    ways = _ways(text, content, start, role, nearest=nearest)
    return min(ways, key=lambda found: found.end, default=None) if nearest else next(ways, None)


def _ways(text: str, content: str, start: int, role: str, *, nearest: bool) -> Iterator[Found]:
    if found := _find(text, content, start, nearest=nearest):
        yield found
    if role in ("system", "user", "assistant"):
        pieces = _TAGS.split(content)
        if len(pieces) > 1 and (found := _find_pieces(text, pieces, start, nearest=nearest)):
            yield found
    else:
        yield from (f for escaped in _escaped(content) if (f := _find(text, escaped, start, nearest=nearest)))


def find_without_reasoning(text: str, content: str, start: int, *, nearest: bool = False) -> Found | None:
    """The place of an assistant's `content` in `text` without its reasoning; None where it is not there or has none."""
    rest = _THOUGHT.sub("\0", content)
    rest = _STRAY_CLOSE.sub("", rest)
    found = None if rest == content else _find_pieces(text, rest.split("\0"), start, nearest=nearest)
    return found and Found(found.end)


def without_open_thought(content: str, prompt: str) -> str:
    """`content` without its opening thinking tag, where the prompt already ends with that tag; else `content` as it is.

    In that case the model does not write the tag, so the rendered response does not have it.
    """
    opened = _OPENED.search(prompt, max(0, len(prompt) - 40))
    bare = content.lstrip()
    return bare.removeprefix(opened.group(1)).lstrip() if opened and bare.startswith(opened.group(1)) else content


def _find(text: str, content: str, start: int, *, nearest: bool) -> Found | None:
    bare = content.strip()
    at = text.find(bare, start)
    if at < 0:
        return None
    if len(bare) == len(content):
        return Found(at + len(bare))
    earliest = max(0, at - len(content) + len(content.lstrip()))
    whole = text.find(content, earliest, earliest + len(content) if nearest else None)
    return Found(at + len(bare), TRIMMED) if whole < 0 else Found(whole + len(content))


def _find_pieces(text: str, pieces: list[str], start: int, *, nearest: bool) -> Found | None:
    changed = TRIMMED
    for piece in pieces:
        at = -1 if nearest and piece in _SWITCHES else text.find(piece.strip(), start)
        if at >= 0:
            start = at + len(piece.strip())
        elif piece in _SWITCHES:
            changed = NO_ORDERS
        else:
            return None
    return Found(start, changed)


def first_missing(text: str, content: str, start: int) -> str:
    """The rest of `content` from the first word on that is missing in `text`; only `text` from `start` on counts.

    The longest beginning of `content` that is in `text` is left off. Where `text` has all of `content`, all of it is returned.
    """
    low, high = 0, len(content)
    while low < high:  # binary search for the longest beginning that `text` has
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text.find(content[:middle], start) >= 0 else (low, middle - 1)
    if low == len(content):
        return content
    within_a_word = not content[low].isspace()
    return content[max(content.rfind(space, 0, low) for space in " \n\t") + 1 if within_a_word else low :]


def is_written(text: str, needle: str) -> bool:
    """True where `text` contains `needle`: as it is, escaped as in a JSON string, or with other white space between words."""
    bare = needle.strip()
    if bare in text or any(escaped in text for escaped in _escaped(bare)):
        return True
    return len(bare.split()) > 1 and " ".join(bare.split()) in " ".join(text.split())


def _escaped(text: str) -> Iterator[str]:
    yield from (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))


def strings(value: Any) -> list[str]:
    """All strings in `value`, which may be a string or a list or object of any depth; keys of objects do not count."""
    if isinstance(value, str):
        return [value]
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


def call_texts(calls: Any) -> Iterator[str]:
    """The texts of tool calls that a template must write: names of tools, names of arguments, and the arguments' values.

    Texts and numbers are yielded one by one, because the punctuation between them differs from template to template.
    """
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
    """Yield (name, texts that a template must write) for each tool: its name and description, and those of its parameters.

    Templates write the rest of a tool each in a notation of its own, such as TypeScript types or a Python signature.
    """
    for tool in tools:
        function = tool["function"] if isinstance(tool.get("function"), dict) else tool
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        named = properties if isinstance(properties, dict) else {}
        described = [p.get("description") for p in named.values() if isinstance(p, dict)]
        yield str(function.get("name")), strings([function.get("name"), function.get("description"), *named, *described])

"""Sorts the columns of a row that are not the pair's own.

Some are parts of the prompt and are read. Columns of images or sound are refused. The others are named, so that the user
learns which columns nobody reads.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.preferences.messages import carries_content, media
from nemotron_dpo.preferences.problems import RowProblem, Unreadable

_MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios", "pixel_values"})


@dataclass(frozen=True, slots=True)
class Beside:
    """What a row holds in columns that are not the pair's own.

    `system`: the text of a `system` column, which becomes the system turn, as in LLaMA-Factory, ms-swift and axolotl.
    `read`: names of the columns that are parts of the prompt.
    `unread`: names of the columns that carry content and that nobody reads.
    `of_json_text`: names of the pair's columns whose messages were JSON text.
    """

    system: str | None = None
    read: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    of_json_text: tuple[str, ...] = ()


NOTHING = Beside()


def read_beside(row: dict[str, Any], own: frozenset[str]) -> Beside:
    """What `row` holds in columns other than `own`, the names of the pair's columns.

    Raises RowProblem where such a column holds images or sound, or where a part of the prompt cannot be read.
    """
    if row.keys() <= own:
        return NOTHING
    names = [name for name in row if name not in own and carries_content(row[name])]
    for name in names:
        if name.lower() in _MEDIA:
            raise media("holds images or sound", name)
        if isinstance(value := row[name], Unreadable) and (name == "system" or (name == "input" and "instruction" in own)):
            raise RowProblem(value.reason, value.message, field=name)
    system = row["system"] if "system" in names and isinstance(row["system"], str) else None
    read = (*(["system"] if system else []), *(["input"] if "input" in names and _is_alpaca(row, own) else []))
    return Beside(system, read, tuple(name for name in names if name not in read))


def joined_input(instruction: str, row: dict[str, Any]) -> str:
    """Alpaca's prompt: `instruction` and, on the next line, the column `input` that the instruction is about."""
    given = row.get("input")
    return f"{instruction}\n{given}" if isinstance(given, str) and given else instruction


def _is_alpaca(row: dict[str, Any], own: frozenset[str]) -> bool:
    return "instruction" in own and all(isinstance(row[name], str) for name in ("instruction", "input"))


def refuse_repeated_keys(line: bytes, row: dict[str, Any]) -> None:
    """Raise RowProblem where an object in `line` has the same key twice.

    `row` is the JSON object that was parsed from `line`. The parser keeps one of the two values, so the other is lost.
    """
    for name in row:
        if line.count(_quoted(name)) > 1 and (repeated := _repeated(line)):
            raise RowProblem("repeated key", "stands twice in one object", field=repeated)


@functools.lru_cache(4096)
def _quoted(name: str) -> bytes:
    return b'"%b"' % name.encode("utf-8", "surrogatepass")


def _repeated(line: bytes) -> str | None:
    found: list[str] = []

    def note(items: list[tuple[str, Any]]) -> None:
        found.extend(name for name, count in Counter(name for name, _ in items).items() if count > 1)

    try:
        json.loads(line, object_pairs_hook=note)
    except RecursionError:
        raise RowProblem("wrong type", "is nested too deeply") from None
    return found[0] if found else None

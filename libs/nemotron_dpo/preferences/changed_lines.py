"""The pairs that changed most as lines for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

UP, DOWN = "improved", "regressed"


def changed_lines(found: Mapping[str, Any], number: int = 3, width: int = 100) -> list[str]:
    """The first `number` of each direction for a person: where the pair is from, its margins, and its texts, a line each."""
    said = [f"texts {found['texts']}"] if "texts" in found else []
    for name in (UP, DOWN):
        pairs: Sequence[Mapping[str, Any]] = found.get(name, [])
        said += [f"{name} most:"] if pairs else [f"{name}: none"]
        for pair in pairs[:number]:
            place = f"line {pair['line']} of {pair['source'] or 'the input'}"
            said.append(f"  {place}: margin {pair['before']:.3f} -> {pair['after']:.3f}")
            said += [f"    {side}: {_short(pair[side], width)}" for side in ("prompt", "chosen", "rejected") if side in pair]
    return said


def _short(text: str, width: int) -> str:
    """On one line, and with nothing in it that a terminal would obey."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.shorten(plain, width, placeholder=" ...") or "(empty)"

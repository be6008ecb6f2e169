"""How tables, configs and commands look on a terminal: plain aligned text, without a library."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dpo.terminal_text import one_line

# A longer value does not push the column after it away for all lines.
_WIDEST_VALUE = 60
_LONGEST_INTEGER = 10_000  # bits; Python refuses to write longer ones in decimal digits, which YAML has in hexadecimal ones


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """`rows` in columns, two spaces apart, under an optional head. A row is one line, whatever its cells hold."""
    lines = [[one_line(str(cell)) for cell in row] for row in ([head] if head else []) + list(rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))] if lines else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as YAML spells it) for every leaf."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", spelled(value)))
    return rows


def with_origins(rows: Sequence[tuple[str, str]], origins: Mapping[str, str], folder: Path, profile: str) -> str:
    """`rows` of (key, value) with where each value comes from, as YAML comments; files in `folder` go by their names."""
    shown = {key: f"profile {profile}" if origin == "profile" else origin for key, origin in origins.items()}
    keys = max(len(key) for key, _ in rows)
    values = max((len(value) for _, value in rows if len(value) <= _WIDEST_VALUE), default=0)
    lines = []
    for key, value in rows:
        origin = f"  # {shown[key].replace(f'{folder}/', '')}" if key in shown else ""
        lines.append(f"{key:{keys}}  {value:{values}}{origin}".rstrip())
    return "\n".join(lines)


def spelled(value: Any) -> str:
    """A scalar or a list as one would type it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        return hex(value)
    return str(value)


def command_line(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """One command, ready to paste, broken before its options where it is long."""
    words = [f"{key}={shlex.quote(value)}" for key, value in env.items()] + [shlex.quote(word) for word in argv]
    if len(" ".join(words)) <= 120:
        return " ".join(words)
    return " ".join(f"\\\n    {word}" if _breaks(word) else word for word in words)


def _breaks(word: str) -> bool:
    return word.startswith("--") or word in ("-o", "-c")

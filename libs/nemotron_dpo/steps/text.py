"""How steps, configs and plans look on a terminal: plain aligned text, without a library."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dpo.steps.catalogue.manifest import Step

# A longer value does not push the column after it away for all lines.
_WIDEST_VALUE = 60


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """`rows` in columns, two spaces apart, under an optional head."""
    lines = [list(map(str, row)) for row in ([head] if head else []) + list(rows)]
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
    return str(value)


def command_line(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """One command, ready to paste, broken before its options where it is long."""
    words = [f"{key}={shlex.quote(value)}" for key, value in env.items()] + [shlex.quote(word) for word in argv]
    if len(" ".join(words)) <= 120:
        return " ".join(words)
    return " ".join(f"\\\n    {word}" if _breaks(word) else word for word in words)


def _breaks(word: str) -> bool:
    return word.startswith("--") or word in ("-o", "-c")


def tree_view(steps: Sequence[Step]) -> str:
    """The steps as a tree of their ids."""
    lines: list[str] = []
    shown: set[tuple[str, ...]] = set()
    for step in steps:
        parts = step.id.split("/")
        for depth in range(1, len(parts) + 1):
            if (path := tuple(parts[:depth])) not in shown:
                shown.add(path)
                lines.append("  " * (depth - 1) + parts[depth - 1] + (f"  {step.name}" if depth == len(parts) else ""))
    return "\n".join(lines)


def choices(steps: Sequence[Step]) -> str:
    """What `list` can be asked for."""
    named = {
        "categories": [step.category for step in steps],
        "artifacts": [item["type"] for step in steps for item in (*step.consumes, *step.produces)],
        "tags": [tag for step in steps for tag in step.tags],
    }
    return "; ".join(f"the {what} are {', '.join(sorted(set(names)))}" for what, names in named.items())


def describe(step: Step, steps: Sequence[Step]) -> str:
    """Everything the manifest says, and its place among `steps`, as `show` prints it."""
    parts = [f"{step.id}: {step.name}", textwrap.fill(step.description, 100)]
    parts.append(table([("category", step.category), ("tags", ", ".join(step.tags)), ("configs", ", ".join(step.configs))]))
    parts.append(_section("Consumes", [(item["type"], _need(item)) for item in step.consumes]))
    parts.append(_section("Produces", [(item["type"], item.get("description", "")) for item in step.produces]))
    parts.append(_section("Before it", before(step, steps)))
    parts.append(_section("After it", after(step, steps)))
    rows = [(p["name"], spelled(p.get("default")), p.get("description", "") + _choices(p)) for p in step.parameters]
    parts.append(_section("Parameters", rows))
    parts.append(_section("Resources", [(name, spelled(value)) for name, value in step.resources.items()]))
    parts.append(_section("When", [(f"{s['when']}:", s["then"]) for s in step.strategies]))
    parts.append(_section("Errors", [(f"{e['name']}:", e["recovery"]) for e in step.errors]))
    return "\n\n".join(part for part in parts if part)


def manifest(step: Step, steps: Sequence[Step]) -> dict[str, Any]:
    """The manifest and its place among `steps` as plain data, for --json."""
    names = ("id", "name", "category", "description", "tags", "consumes", "produces", "parameters", "strategies", "errors")
    told = {name: getattr(step, name) for name in (*names, "resources")} | {"configs": step.configs}
    beside = {"before": before(step, steps), "after": after(step, steps)}
    return told | {name: [{"step": other, "artifact": kind} for other, kind in found] for name, found in beside.items()}


def before(step: Step, steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(step, artifact) for every other step that makes something this one takes."""
    return [(other.id, kind) for other in steps if other.id != step.id for kind in _common(other.produces, step.consumes)]


def after(step: Step, steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(step, artifact) for every other step that takes something this one makes."""
    return [(other.id, kind) for other in steps if other.id != step.id for kind in _common(step.produces, other.consumes)]


def _common(made: Sequence[Mapping[str, Any]], taken: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {item["type"] for item in taken}
    return [item["type"] for item in made if item["type"] in kinds]


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n{textwrap.indent(table(rows), '  ')}" if rows else ""


def _need(item: Mapping[str, Any]) -> str:
    return item.get("description", "") + ("" if item.get("required", True) else " (optional)")


def _choices(parameter: Mapping[str, Any]) -> str:
    return f" [{', '.join(map(str, parameter['choices']))}]" if parameter.get("choices") else ""

"""What `list` and `show` say of steps: as a tree, as text about one step, and as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_dpo.steps.catalogue.manifest import Step
from nemotron_dpo.steps.text import spelled, table


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
    parts.append(_section("Objectives (dpo.preference_loss)", _objectives(step)))
    parts.append(_section("Resources", [(name, spelled(value)) for name, value in step.resources.items()]))
    parts.append(_section("When", [(f"{s['when']}:", s["then"]) for s in step.strategies]))
    parts.append(_section("Errors", [(f"{e['name']}:", e["recovery"]) for e in step.errors]))
    return "\n\n".join(part for part in parts if part)


def as_data(step: Step, steps: Sequence[Step]) -> dict[str, Any]:
    """The manifest and its place among `steps` as plain data, for --json."""
    names = ("id", "name", "category", "description", "tags", "consumes", "produces", "parameters", "strategies", "errors")
    told = {name: getattr(step, name) for name in (*names, "resources")} | {"configs": step.configs}
    beside = {"before": before(step, steps), "after": after(step, steps)}
    told |= {"objectives": [dict(zip(("name", "needs", "use"), row, strict=True)) for row in _objectives(step)]}
    return told | {name: [{"step": other, "artifact": kind} for other, kind in found] for name, found in beside.items()}


def _objectives(step: Step) -> list[tuple[str, str, str]]:
    """What the step may train, where it is told by dpo.preference_loss."""
    from nemotron_dpo.config.objective_table import objectives_in_short

    return objectives_in_short() if any(one["name"] == "dpo.preference_loss" for one in step.parameters) else []


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

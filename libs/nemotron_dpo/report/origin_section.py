"""Where a run comes from: digests of what it is made of, its settings, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_dpo.report.document import Grid, Section
from nemotron_dpo.report.run_folder import RunFolder, typed
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.visible import shortened, visible
from nemotron_dpo.run_state import how_extended


def origin_section(run: Run) -> Section:
    """Lineage, settings and commands."""
    given = run.given
    made_from = [(visible(name), visible(value)) for name, value in _pairs(given.facts.get("lineage")) if value is not None]
    facts = [
        ("folder", visible(given.folder)),
        *((name, visible(given.facts[name])) for name in ("started", "updated", "host") if given.facts.get(name)),
    ]
    versions = given.facts.get("versions")
    facts += [("versions", visible(", ".join(map(str, versions))))] if isinstance(versions, list) else []
    earlier = given.facts.get("earlier")
    facts += [("resumed", f"{len(earlier)} earlier processes")] if isinstance(earlier, list) and earlier else []
    settings = tuple(
        (visible(name), shortened(visible(value), 200)) for name, value in flat(given.settings) if value is not None
    )
    grids = [Grid(("made from", "digest"), tuple(made_from))] if made_from else []
    grids += [Grid(("this run", ""), tuple(facts))]
    grids += [Grid(("setting", "value"), settings, "All settings")] if settings else []
    lead = "Commands in the order they ran; the same inputs, settings and versions give the same numbers on the same machine."
    lead = f"{lead} {visible(how_extended(given.facts))}".rstrip()
    commands = tuple(visible(command, lines=True) for command in _commands(given))
    return Section("origin", "Where it comes from", lead if commands else "", grids=tuple(grids), commands=commands)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of `tree` with its dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return sorted((str(name), one) for name, one in value.items()) if isinstance(value, Mapping) else []


def _commands(given: RunFolder) -> Iterator[str]:
    """The job's own command and that of each of its stages; without a job, the command of the run."""
    argv = given.record.get("argv")
    if isinstance(argv, list) and argv:
        yield typed([str(word) for word in argv])
    for stage in given.record.get("stages") or []:
        if isinstance(stage, Mapping) and isinstance(stage.get("command"), str):
            yield stage["command"]
    if not given.record and given.command:
        yield typed(given.command)

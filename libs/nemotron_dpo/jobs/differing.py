"""What two jobs differ in: settings, what they read, how they were made, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.jobs.job import Job
from nemotron_dpo.jobs.listing import best
from nemotron_dpo.outcome import margin
from nemotron_dpo.run_state import read_facts
from nemotron_dpo.steps.text import flat, table
from nemotron_dpo.terminal_text import one_line

_MISSING = "-"


def difference(first: Job, second: Job) -> dict[str, dict[str, list[str]]]:
    """For each of `settings`, `inputs`, `program` and `figures` the names that differ, with both values as text."""
    parts = {
        "settings": (_settings(first), _settings(second)),
        "inputs": (_lineage(first), _lineage(second)),
        "program": (_program(first), _program(second)),
        "figures": (_figures(first), _figures(second)),
    }
    return {name: _differing(*both) for name, both in parts.items()}


def shown(first: Job, second: Job) -> str:
    """The same as tables; a line where nothing differs."""
    found = {name: rows for name, rows in difference(first, second).items() if rows}
    if not found:
        return one_line(f"{first.id} and {second.id} do not differ")
    heads = [job.name if job.name and first.name != second.name else job.id for job in (first, second)]
    return "\n\n".join(table([(key, *both) for key, both in rows.items()], (name, *heads)) for name, rows in found.items())


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, list[str]]:
    names = dict.fromkeys([*first, *second])
    both = {name: [first.get(name, _MISSING), second.get(name, _MISSING)] for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _settings(job: Job) -> dict[str, str]:
    """All but what names the job's own folder, which differs in any two."""
    return {key: value.replace(str(job.folder), "JOB") for key, value in flat(job.settings)}


def _lineage(job: Job) -> dict[str, str]:
    """Digests of what training read."""
    lineage = read_facts(job.folder / "run").get("lineage")
    return {str(key): str(value) for key, value in lineage.items()} if isinstance(lineage, Mapping) else {}


def _program(job: Job) -> dict[str, str]:
    facts = read_facts(job.folder / "run")
    versions = facts.get("versions")
    found: dict[str, Any] = {"step": job.step, "version": job.record.get("version"), "processes": job.record.get("processes")}
    found["versions"] = ", ".join(map(str, versions)) if isinstance(versions, list) else None
    return {key: str(value) for key, value in found.items() if value is not None}


def _figures(job: Job) -> dict[str, str]:
    made, found = job.outcome, {"status": job.status}
    if made is None:
        return found
    found["steps"] = str(made.num_steps)
    last = {**made.ends.last, "margin": margin(made.ends.last)}
    found |= {f"last {name}": f"{last[name]:.4f}" for name in ("loss", "accuracy", "margin") if last.get(name) is not None}
    held_out = best(job) or {}
    for name in ("step", "loss", "accuracy", "margin"):
        value = held_out.get(name)
        if value is not None:
            found[f"best {held_out['set']} {name}"] = str(value) if name == "step" else f"{value:.4f}"
    return found

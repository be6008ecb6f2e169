"""Jobs as a table or as data, in the order of anything that they have."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.jobs.job import Job
from nemotron_dpo.outcome import margin
from nemotron_dpo.steps.text import spelled, table
from nemotron_dpo.terminal_text import one_line

_WIDEST = 60
HEAD = ("JOB", "NAME", "STATUS", "SETTINGS", "VALIDATION", "SIZE")
KEYS = ("created", "id", "name", "step", "status", "size", "steps", "loss", "accuracy", "margin")


def as_data(job: Job) -> dict[str, Any]:
    """All that is known of a job, as JSON has it."""
    made = job.outcome
    return {
        "id": _as_utf8(job.id),
        "folder": _as_utf8(str(job.folder)),
        "name": job.name,
        "step": job.step,
        "status": job.status,
        "reason": job.reason,
        "created": job.created.isoformat() if job.created else None,
        "config": job.config,
        "overrides": list(job.overrides),
        "steps": made.num_steps if made else None,
        "validation": best(job),
        "bytes": job.num_bytes,
    }


def best(job: Job) -> dict[str, Any] | None:
    """The best validation, by its loss, of the first set of a job: which set, after which step, and its figures."""
    made = job.outcome
    if made is None or not made.validations:
        return None
    one = made.validations[0]
    figures = {"loss": one.best.get("loss"), "accuracy": one.best.get("accuracy"), "margin": margin(one.best)}
    return {"set": one.name, "step": one.best_step, **figures}


def in_order(jobs: Sequence[Job], key: str, *, reverse: bool) -> list[Job]:
    """`jobs` by `key`, one of KEYS or a setting such as policy.optimizer.lr. Those without it are last.

    Raises UserError (usage) for a key that no job has.
    """
    values = {job.id: _value(job, key) for job in jobs}
    if jobs and key not in KEYS and all(value is None for value in values.values()):
        remedy = f"give one of {', '.join(KEYS)}, or a setting such as policy.optimizer.lr"
        raise UserError("no job has it", source=f"--sort {key}", remedy=remedy, usage=True)
    known = [job for job in jobs if values[job.id] is not None]
    known.sort(key=lambda job: _rank(values[job.id]), reverse=reverse)
    return known + [job for job in jobs if values[job.id] is None]


def listed(jobs: Sequence[Job]) -> str:
    """A line for each of `jobs`; what was given to all of them, where there are several, and how many there are."""
    common = set.intersection(*(set(given(job)) for job in jobs)) if len(jobs) > 1 else set[str]()
    short = _shortened({word.partition("=")[0] for job in jobs for word in given(job)})
    rows = [
        (job.id, job.name or "-", _status(job), _settings(job, common, short), _validation(job), size(job.num_bytes))
        for job in jobs
    ]
    shared = [word for word in given(jobs[0]) if word in common]
    of_all = [one_line(f"all of them: {' '.join(shared)}")] if shared else []
    total = f"{len(jobs)} job{'s' * (len(jobs) != 1)}, {size(sum(job.num_bytes for job in jobs))}"
    return "\n".join([table(rows, HEAD), *of_all, total])


def given(job: Job) -> list[str]:
    """The settings that were given beside the config; of several for one key the last, which counts."""
    last = {word.partition("=")[0]: word for word in job.overrides}
    return list(last.values())


def size(num_bytes: float) -> str:
    """In the unit that makes it short."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"


def setting(tree: Mapping[str, Any], path: str) -> Any:
    """The value of the dotted key `path`, None where there is none."""
    value: Any = tree
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _value(job: Job, key: str) -> Any:
    created = job.created.timestamp() if job.created else None
    plain = {"id": job.id, "name": job.name, "step": job.step, "created": created}
    if key in plain:
        return plain[key]
    if key == "status":
        return job.status
    if key == "size":
        return job.num_bytes
    if key == "steps":
        return job.outcome.num_steps if job.outcome else None
    if key in KEYS:
        return (best(job) or {}).get(key)
    return setting(job.settings, key)


def _rank(value: Any) -> tuple[int, Any]:
    """Numbers before all else, and what is no number by its text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1, spelled(value)
    return 0, math.inf if value != value else value  # an integer may be too large for math.isnan


def _as_utf8(name: str) -> str:
    """The name of a file, whose bytes need not be UTF-8, as JSON can hold it."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _status(job: Job) -> str:
    failed = job.state.get("stage") if job.status in ("failed", "killed") else None
    return f"{job.status} ({failed})" if failed else job.status


def _shortened(keys: Collection[str]) -> dict[str, str]:
    """Each of `keys` by as many of its last parts as no other one ends with."""
    ends = {key: [".".join(key.split(".")[-n:]) for n in range(1, key.count(".") + 2)] for key in keys}
    uses = Counter(end for of_key in ends.values() for end in of_key)
    return {key: next((end for end in of_key if uses[end] == 1), key) for key, of_key in ends.items()}


def _settings(job: Job, common: Collection[str], short: Mapping[str, str]) -> str:
    """The config and what was given beside it and not to all, with the `short` names of the keys of all jobs listed."""
    own = [word.partition("=") for word in given(job) if word not in common]
    words = [f"{short[key]}={value}" for key, _, value in own]
    shown = " ".join([f"{job.step.rpartition('/')[2]} -c {job.config}" if job.config else job.step, *words])
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 3]}..."


def _validation(job: Job) -> str:
    found = best(job)
    if found is None:
        return "-"
    figures = [f"{name} {found[name]:.4f}" for name in ("loss", "accuracy") if found[name] is not None]
    return f"{', '.join(figures)} (step {found['step']})"

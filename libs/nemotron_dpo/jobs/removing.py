"""Remove jobs: which may go, and what the cache believed to lie in them.

A stage that was up to date by a folder in a removed job stays so where another job has the same: its note is moved there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.jobs import leftovers
from nemotron_dpo.jobs.job import Job
from nemotron_dpo.jobs.needs import kept_for
from nemotron_dpo.steps.compile import stage_cache

_KEY = re.compile(r"\w{1,64}")


@dataclass(frozen=True)
class Removal:
    """The jobs that go, and why of those that would have gone the others stay."""

    jobs: Sequence[Job]
    kept: Mapping[str, str]


def prunable(jobs: Sequence[Job], keep: int | None, older_than: float | None) -> Removal:
    """All of `jobs`, the oldest first, but the newest `keep`, those younger than `older_than` seconds, and what these need.

    None asks nothing. A job that may still be worked at stays.
    """
    newest = {job.id for job in (jobs[-keep:] if keep else [])}
    young = {job.id for job in jobs if older_than is not None and _age(job) < older_than}
    asked = [job for job in jobs if job.id not in newest | young]
    alive = {job.id: f"{job.status}: it may still be worked at" for job in asked if job.is_alive}
    kept = {job.id for job in jobs} - {job.id for job in asked} | set(alive)
    needs = kept_for([job for job in jobs if job.id in kept], jobs)
    reasons = {name: f"{by} needs it" for name, by in needs.items() if name not in kept}
    going = [job for job in asked if job.id not in {**alive, **reasons}]
    return Removal(going, {**alive, **reasons})


def check_removable(chosen: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Raise UserError where one of the `chosen` may still be worked at, or another job needs it."""
    for job in chosen:
        if job.is_alive:
            raise UserError(f"is {job.status}: it may still be worked at", source=job.folder, remedy="--force removes it")
    gone = {job.id for job in chosen}
    needs = kept_for([job for job in jobs if job.id not in gone], jobs)
    for job in chosen:
        if job.id in needs:
            raise UserError(f"{needs[job.id]} needs it", source=job.folder, remedy="--force removes it all the same")


def remove(job: Job, jobs: Sequence[Job]) -> None:
    """Remove the folder of `job`; what the cache has in it is from now on taken from another of `jobs`, where one has it."""
    for stage, key, outputs in _made(job):
        entry = stage_cache.find(key, outputs)
        if entry is None or not any(_within(place, job.folder) for place in entry.places):
            continue
        for other in reversed(jobs):
            same = next((paths for _, known, paths in _made(other) if known == key), None)
            if other.id != job.id and same and all(map(os.path.exists, same)):
                stage_cache.record(key, stage, same)
                break
    leftovers.clear(leftovers.take_away(job.folder))


def _made(job: Job) -> list[tuple[str, str, list[Path]]]:
    """(stage, key, outputs) of what a job made or took; what no cache could have noted is left out."""
    made: Any = job.state.get("made")
    found = []
    for stage, one in made.items() if isinstance(made, Mapping) else ():
        with contextlib.suppress(KeyError, TypeError):
            key, outputs = str(one["key"]), [str(path) for path in one["outputs"]]
            if _KEY.fullmatch(key) and not any("\0" in path for path in outputs):
                found.append((str(stage), key, [Path(path) for path in outputs]))
    return found


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _age(job: Job) -> float:
    """Seconds since it was made; by its folder where job.yaml does not say."""
    created = job.created.timestamp() if job.created else job.folder.stat().st_mtime
    return time.time() - created

"""A job's folder, as nemotron-steps leaves it: what was asked for, how it stands, what came of it, and how much it takes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.errors import UserError
from nemotron_dpo.jobs.leftovers import RECORD, is_leftover
from nemotron_dpo.outcome import Outcome, outcome, read_metrics
from nemotron_dpo.run_state import is_alive, read_facts, read_json, state_of
from nemotron_dpo.steps.compile.job_state import FILE as STATE

FAILED = ("failed", "killed")
_LIVING = ("running", "submitted")


@dataclass(frozen=True)
class Job:
    """`record` is job.yaml, `state` is state.json, empty in jobs of earlier versions."""

    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name of the folder, which is the job's own among all."""
        return self.folder.name

    @property
    def name(self) -> str | None:
        """What a person called it."""
        name = self.record.get("name")
        return None if name is None else str(name)

    @property
    def step(self) -> str:
        return str(self.record.get("step", "unknown"))

    @property
    def config(self) -> str:
        """The name of the config that it began with."""
        config = self.record.get("config")
        return Path(str(config.get("path", ""))).stem if isinstance(config, Mapping) else ""

    @property
    def overrides(self) -> Sequence[str]:
        """The settings that were given beside the config."""
        config = self.record.get("config")
        words = config.get("overrides") if isinstance(config, Mapping) else None
        return [str(word) for word in words] if isinstance(words, list) else []

    @cached_property
    def created(self) -> datetime | None:
        """When; None where job.yaml does not say, or says what no clock of here can show."""
        try:
            return datetime.fromisoformat(str(self.record.get("created"))).astimezone()
        except (ValueError, OverflowError):
            return None

    @cached_property
    def status(self) -> str:
        """`running`, `submitted`, `done`, `failed`, `stopped`, `killed` or `unknown`."""
        facts = self.state or read_facts(self.folder / "run")
        return state_of(facts)

    @property
    def reason(self) -> str | None:
        """Why it is not done."""
        reason = self.state.get("reason")
        return None if reason is None else str(reason)

    @property
    def is_alive(self) -> bool:
        """Whether a process may still write into it; of other machines and clusters nobody here knows."""
        run = read_facts(self.folder / "run")
        return self.status in _LIVING or (state_of(run) == "running" and is_alive(run))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """train.yaml: what the stages read."""
        return read_mapping(self.folder / "train.yaml")

    @cached_property
    def outcome(self) -> Outcome | None:
        """What was measured; None where nothing was."""
        rows = read_metrics(self.folder / "run" / "metrics.jsonl")
        return outcome(rows) if rows else None

    @cached_property
    def num_bytes(self) -> int:
        """What it takes on disk. Blocks that it shares with other jobs count for each of them."""
        return bytes_in(self.folder)


def bytes_in(folder: Path) -> int:
    """What a folder takes on disk, each file once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # of a run that goes on, or that is being removed
                state = os.lstat(os.path.join(parent, file))
                seen[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(seen.values())


def jobs_in(root: Path) -> list[Job]:
    """Every job below `root`, the oldest first. Raises UserError where `root` is none of nemotron-steps."""
    if not root.is_dir():
        remedy = "nemotron-steps run makes it in the folder where it is started; --jobs names another"
        raise UserError("no such folder of jobs", source=root, remedy=remedy)
    return sorted(_found(root), key=lambda job: (job.created.timestamp() if job.created else 0.0, job.id))


def _found(root: Path) -> Iterator[Job]:
    for folder in root.iterdir():
        if (folder / RECORD).is_file() and not folder.is_symlink() and not is_leftover(folder):
            yield Job(folder, read_mapping(folder / RECORD), read_json(folder / STATE))


def is_whole_name(given: str, job: Job) -> bool:
    """Whether `given` is all of what names `job`, and not a part that fits it among the jobs there happen to be."""
    return given in (job.id, job.name) or os.path.realpath(os.path.expanduser(given)) == os.path.realpath(job.folder)


def find(given: str, jobs: Sequence[Job]) -> Job:
    """The job that `given` names: its folder, the folder's name, what a person called it, or a part of either.

    Raises UserError where there is none, or more than one.
    """
    path = Path(os.path.expanduser(given))  # as it stands where there is no such user
    same = [job for job in jobs if os.path.isdir(path) and path.resolve() == job.folder.resolve()]
    exact = same or [job for job in jobs if given in (job.id, job.name)]
    found = exact or [job for job in jobs if given and (given in job.id or given in (job.name or ""))]
    if len(found) > 1:
        names = ", ".join(job.id for job in found[-4:])
        raise UserError("is the name of several jobs", source=given, remedy=f"name one of them: {names}", usage=True)
    if not found:
        raise UserError("no such job", source=given, remedy="`nemotron-steps runs` lists them", usage=True)
    return found[0]


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; empty where there is none."""
    return documents.yaml_mapping(path, _LOADER)


class _Loader(documents.safe_loaders()[0]):
    """PyYAML takes 1e-05 for a string, which YAML 1.2 and our files take for a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"), list("-+0123456789.")
)
_LOADER = _Loader

"""The record of a run: a folder of its own with job.yaml (everything, with provenance) and train.yaml (what stages read)."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nemotron_dpo import __version__, machine_errors
from nemotron_dpo.config import redact, redact_argv, redact_override, to_yaml
from nemotron_dpo.steps.compile import stage_cache
from nemotron_dpo.steps.compile.stage_choice import StageDecision
from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.text import command_line


@dataclass(frozen=True)
class Provenance:
    """What the run came from."""

    step: str
    argv: Sequence[str]
    config: Path
    overrides: Sequence[str]
    profile: Profile
    name: str | None = None


def job_folder(step_id: str, now: datetime, called: str | None = None) -> Path:
    """`.nemotron/jobs/<timestamp>-<step>[-<what it is called>]` below the working folder; with a number where that is taken."""
    return next(folder for folder in _job_folders(step_id, now, called) if not folder.exists())


@contextlib.contextmanager
def claimed_job_folder() -> Iterator[Callable[[str, datetime, str | None], Path]]:
    """In the block a `job_folder` that makes the folder, so that a run which starts in the same second takes another.

    A folder that is empty where the block ends goes again.
    """
    made: list[Path] = []

    def claim(step_id: str, now: datetime, called: str | None = None) -> Path:
        made.extend(folder for folder in (stage_cache.JOBS, *stage_cache.JOBS.parents) if not folder.exists())
        job = next(folder for folder in _job_folders(step_id, now, called) if _makes(folder))
        made.insert(0, job)
        return job

    try:
        yield claim
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _job_folders(step_id: str, now: datetime, called: str | None) -> Iterator[Path]:
    name = f"{now:%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9_.]+', '-', step_id)}" + (f"-{called}" if called else "")
    return (stage_cache.JOBS / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))


def _makes(folder: Path) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)  # raises where that is a file or leads nowhere
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def write_job(plan: Plan, provenance: Provenance, now: datetime) -> None:
    """Write job.yaml and the files of the plan into its folder, secrets hidden."""
    plan.job.mkdir(parents=True, exist_ok=True)
    for name, text in {**plan.files, "job.yaml": to_yaml(_record(plan, provenance, now))}.items():
        with machine_errors.named(plan.job / name):
            (plan.job / name).write_text(text, encoding="utf-8")


def file_lines(plan: Plan) -> list[tuple[str, str]]:
    """(what, command) that writes the files of the plan by hand, so that a printed plan can be pasted as it is."""
    folder = shlex.quote(str(plan.job))
    texts = [f"cat > {folder}/{name} <<'END_OF_FILE'\n{text.rstrip()}\nEND_OF_FILE" for name, text in plan.files.items()]
    return [("job folder", "\n".join([f"mkdir -p {folder}", *texts]))]


def prelude_lines(plan: Plan) -> list[tuple[str, str]]:
    """(what, command) for what the cache lacks."""
    prelude = [] if plan.prelude is None or plan.prelude.is_cached else list(plan.prelude.commands)
    return [(f"tiny-sft: {name}", command_line(argv, {})) for name, argv in prelude]


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """(stage, command) for everything there is to run, what the cache lacks first."""
    return prelude_lines(plan) + [(stage.name, stage_line(stage)) for stage in plan.stages]


def stage_line(stage: Stage) -> str:
    """The command of one stage, ready to paste, secrets hidden."""
    return command_line(redact(stage.argv), redact(dict(stage.env)))


def decision_line(decision: StageDecision) -> tuple[str, str]:
    """(stage, command) for what happens to one stage: its own command, or those that take it from where it is."""
    stage = decision.stage
    if decision.entry is None and decision.beginning is None:
        return stage.name, stage_line(stage)
    if decision.entry is None:
        return _beginning_line(decision)
    instead = [shlex.join(command) for command in stage_cache.by_hand(decision.entry, stage.outputs)] or ["true"]
    command = shlex.join(redact(stage.argv)).replace("\n", " ")
    return f"{stage.name}: up to date, taken from where it is", "\n".join([f"# {command}", *instead])


def _beginning_line(decision: StageDecision) -> tuple[str, str]:
    """As decision_line, for a stage that a shorter run began, or could have begun."""
    stage, shorter = decision.stage, decision.goes_on_from
    copied = [shlex.join(["cp", "-r", shorter.folder, str(stage.outputs[0])])] if shorter else []
    return f"{stage.name}: {decision.how_it_goes_on}", "\n".join([*copied, stage_line(stage)])


def _record(plan: Plan, provenance: Provenance, now: datetime) -> dict[str, object]:
    profile = provenance.profile
    source = str(profile.source) if profile.source else None
    return {
        "step": provenance.step,
        "name": provenance.name,
        "created": now.astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "folder": str(Path.cwd()),
        "argv": redact_argv(provenance.argv),
        "config": {"path": str(provenance.config), "overrides": [redact_override(word) for word in provenance.overrides]},
        "profile": {
            "name": profile.name,
            "source": source,
            **redact(profile.settings),
        },
        "processes": plan.num_processes,
        "stages": [{"name": name, "command": command} for name, command in plan_lines(plan)],
        "outputs": {name: str(path) for name, path in plan.artifacts.items()},
    }

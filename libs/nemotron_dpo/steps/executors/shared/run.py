"""A compiled run in another place: printed, or submitted and, where it is attached, followed to its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import job_record as job
from nemotron_dpo.steps.compile.compiled_run import Run, Say, forecast_parts, print_config, print_parts
from nemotron_dpo.steps.compile.profile import Profile
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared.environment import without_values


class Job(Protocol):
    """What will be asked for."""

    @property
    def sees_our_files(self) -> bool: ...

    @property
    def idle_keys(self) -> tuple[str, ...]: ...

    def report(self, tell: Callable[[Plan], str]) -> str: ...


J = TypeVar("J", bound=Job)


class Executor(Protocol[J]):
    """A place's module `launch`: its job made without touching anything, shown, and launched."""

    def prepare(self, plan: Plan, profile: Profile, *, num_nodes: int, checkpoint_dir: str | None, attached: bool) -> J: ...

    def dry_lines(self, job: J, *, force_squash: bool) -> list[tuple[str, str]]: ...

    def launch(self, job: J, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object]) -> int: ...


def run_elsewhere(run: Run, say: Say, executor: Executor[Any], place: str) -> int:
    """Submit it to `place`, or print what would be. Data is looked for only where the job sees our files."""
    request, where = run.request, run.profile
    made = _prepared(run, executor)
    if made.idle_keys:
        say(f"warning: {where.source}: without effect on {place}: {', '.join(made.idle_keys)}")
    missing = run.kind.missing(run.config, look=made.sees_our_files)
    if request.dry_run:
        for line in missing:
            say(f"warning: {line}")
        print_config(run)
        shown = executor.dry_lines(made, force_squash=request.force_squash)
        print_parts([*forecast_parts(run), *job.file_lines(run.plan), *shown])
        return 0
    for line in missing:
        raise UserError(line)
    job.write_job(run.plan, replace(run.provenance, profile=without_values(where)), run.created)
    status = executor.launch(made, attached=request.attached, force_squash=request.force_squash, say=say, show=_show)
    if request.attached and status == 0 and not run.ends_early:
        print(made.report(run.kind.report))
    return status


def _prepared(run: Run, executor: Executor[J]) -> J:
    """The job of those stages that count, on as many nodes as the config says."""
    if any(stage.is_given for stage in run.choices):
        raise UserError("--from goes on in what an earlier local run made", remedy="leave it out", usage=True)
    plan = replace(run.plan, stages=tuple(stage.stage for stage in run.choices))
    cluster, checkpointing = getattr(run.config, "cluster", None), getattr(run.config, "checkpointing", None)
    return executor.prepare(
        plan,
        run.profile,
        num_nodes=cluster.num_nodes if cluster else 1,
        checkpoint_dir=checkpointing.checkpoint_dir if checkpointing else None,
        attached=run.request.attached,
    )


def _show(content: bytes) -> None:
    sys.stderr.buffer.write(content)
    sys.stderr.buffer.flush()

"""An executor of another place: a run becomes one job there, which is shown, or submitted and followed to its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import job_record
from nemotron_dpo.steps.compile.compiled_run import CompiledRun, Say
from nemotron_dpo.steps.compile.job_state import JobStateFile
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared.dry_run import forecast_parts, print_config, print_parts
from nemotron_dpo.steps.executors.shared.environment import without_values
from nemotron_dpo.steps.profiles.profile import Profile


class PreparedJob(Protocol):
    """What will be asked for. `sees_our_files`: paths of the config are those of this machine.

    `remarks` are for whoever submits it: what is odd in it, a line each.
    """

    @property
    def sees_our_files(self) -> bool: ...

    @property
    def remarks(self) -> Sequence[str]: ...

    def report(self, tell: Callable[[Plan], str]) -> str:
        """Where the outputs lie, and what `tell` says of the plan where its figures can be read here."""
        ...


J = TypeVar("J", bound=PreparedJob)


class Place(Protocol[J]):
    """Where jobs run: one is prepared without touching anything, shown, and launched."""

    def prepare(self, plan: Plan, profile: Profile, *, num_nodes: int, checkpoint_dir: str | None, attached: bool) -> J:
        """The job of `plan`, its processes on `num_nodes`; `checkpoint_dir` None is the run folder's. Raises UserError."""
        ...

    def dry_lines(self, job: J, *, force_squash: bool) -> list[tuple[str, str]]:
        """(what, text) of every file and request, secrets hidden."""
        ...

    def launch(self, job: J, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object]) -> int:
        """Submit `job`; where `attached`, follow it and return its exit status. Its log goes to `show`."""
        ...


@dataclass(frozen=True)
class ElsewhereExecutor(Generic[J]):
    """The executor of `place`, which people call `name`. Data is looked for only where the job sees our files."""

    name: str
    place: Place[J]

    def print_plan(self, run: CompiledRun, say: Say) -> None:
        """Every file that would be written, and how it would be submitted."""
        prepared = self._prepared(run, say)
        for line in run.planner.missing(run.config, look=prepared.sees_our_files):
            say(f"warning: {line}")
        print_config(run)
        shown = self.place.dry_lines(prepared, force_squash=run.request.force_squash)
        print_parts([*forecast_parts(run), *job_record.file_lines(run.plan), *shown])

    def execute(self, run: CompiledRun, say: Say) -> int:
        """Submit one job; where the run is attached, follow it to its end."""
        request, prepared = run.request, self._prepared(run, say)
        for line in run.planner.missing(run.config, look=prepared.sees_our_files):
            raise UserError(line)
        record = replace(run.provenance, profile=without_values(run.profile))
        job_record.write_job(run.plan, record, run.created)
        squash = request.force_squash
        state = JobStateFile(run.plan.job, "submitted")
        status = self.place.launch(prepared, attached=request.attached, force_squash=squash, say=say, show=_show)
        if request.attached:
            state.end("done" if status == 0 else "failed", status)
        if request.attached and status == 0 and not run.ends_early:
            print(prepared.report(run.report))
        return status

    def _prepared(self, run: CompiledRun, say: Say) -> J:
        """The job of those stages that count, on as many nodes as the config says."""
        if any(stage.is_given for stage in run.choices):
            raise UserError("--from goes on in what an earlier local run made", remedy="leave it out", usage=True)
        plan = replace(run.plan, stages=tuple(stage.stage for stage in run.choices))
        cluster, checkpointing = getattr(run.config, "cluster", None), getattr(run.config, "checkpointing", None)
        prepared = self.place.prepare(
            plan,
            run.profile,
            num_nodes=cluster.num_nodes if cluster else 1,
            checkpoint_dir=checkpointing.checkpoint_dir if checkpointing else None,
            attached=run.request.attached,
        )
        for line in prepared.remarks:
            say(line)
        if idle := run.profile.idle_keys():
            say(f"warning: {run.profile.source}: without effect on {self.name}: {', '.join(idle)}")
        return prepared


def _show(content: bytes) -> None:
    sys.stderr.buffer.write(content)
    sys.stderr.buffer.flush()

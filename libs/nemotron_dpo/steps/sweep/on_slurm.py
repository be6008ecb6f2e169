"""The points of a sweep as one array of jobs on Slurm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import job_record
from nemotron_dpo.steps.compile.compiled_run import CompiledRun
from nemotron_dpo.steps.compile.job_state import JobStateFile
from nemotron_dpo.steps.executors.shared.environment import without_values
from nemotron_dpo.steps.executors.slurm.array import JobArray
from nemotron_dpo.steps.executors.slurm.parts import MAIN
from nemotron_dpo.steps.executors.slurm.prepared import PreparedSlurmJob, prepare
from nemotron_dpo.steps.executors.slurm.settings import read_settings
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.sweep import record
from nemotron_dpo.steps.sweep.points import Point

_SCORES = "NEMOTRON_DPO_CACHE"


def array_of(
    runs: Sequence[CompiledRun],
    scoring: CompiledRun | None,
    profile: Profile,
    sweep: Path,
    *,
    at_once: int | None,
    attached: bool,
) -> JobArray:
    """The array of `runs`, in the folder `sweep`; `scoring` is what is scored once for all of them, into a store beside it.

    A store that the profile names is used instead. Raises UserError for a profile that does not do.
    """
    root = read_settings(profile, attached=attached).job_root
    folder = f"{root}/{sweep.name}" if root else str(sweep.absolute())
    if scoring is not None:
        profile = replace(profile, env_vars={_SCORES: f"{folder}/scores", **profile.env_vars})
    jobs = [_prepared(run, profile, attached=attached) for run in runs]
    if len({part.asked for job in jobs for part in job.parts if part.name == MAIN}) > 1:
        remedy = "sweep cluster.* by a run each"
        raise UserError(
            "ask for different numbers of nodes or processes, and are one array", source="the points", remedy=remedy
        )
    scores = None if scoring is None else _prepared(scoring, profile, attached=attached)
    return JobArray(sweep.name, folder, jobs, scores, at_once)


def write_records(
    runs: Sequence[CompiledRun], grid: Sequence[Point], scoring: CompiledRun | None, sweep: Path, command: Sequence[str]
) -> None:
    """Make the folders of the jobs and that of the sweep, which say what was submitted."""
    sweep.mkdir(parents=True)
    for run in (*runs, *([scoring] if scoring else [])):
        job_record.write_job(run.plan, replace(run.provenance, profile=without_values(run.profile)), run.created)
        JobStateFile(run.plan.job, "submitted")
    jobs = [record.PointJob(point, run.plan.job, "submitted") for point, run in zip(grid, runs, strict=True)]
    record.write(sweep, command, jobs)


def scores_for_all(compile_: Callable[[], CompiledRun], runs: Sequence[CompiledRun]) -> CompiledRun | None:
    """The run up to its last scoring, where anything is scored at all; `compile_` makes it."""
    return compile_() if any(stage.program == "ref-logprobs" for stage in runs[0].plan.stages) else None


def _prepared(run: CompiledRun, profile: Profile, *, attached: bool) -> PreparedSlurmJob:
    plan = replace(run.plan, stages=tuple(choice.stage for choice in run.choices))
    cluster = getattr(run.config, "cluster", None)
    nodes = cluster.num_nodes if cluster else 1
    return prepare(plan, profile, num_nodes=nodes, checkpoint_dir=None, attached=attached)

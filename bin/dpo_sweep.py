#!/usr/bin/env python3
"""Run a step at every point of a grid over its keys. `nemotron-steps run STEP ... --sweep KEY=A,B,C` is the same.

\b
    dpo-sweep rl/nemo_rl/dpo -c tiny --sweep dpo.reference_policy_kl_penalty=0.05,0.1,0.3
    dpo-sweep dpo -c mine.yaml --sweep dpo.reference_policy_kl_penalty=0.05,0.1 --sweep policy.optimizer.lr=5e-7,1e-6
    dpo-sweep dpo -c mine.yaml --sweep dpo.seed=1,2,3 --parallel 2
    dpo-sweep dpo -c mine.yaml -b my_cluster --sweep dpo.reference_policy_kl_penalty=0.05,0.1,0.3

Each point is a job of its own, which `dpo-runs` lists under the sweep's name and the point's settings. All points are checked
before any is run. Rows are tokenized once and scored once, by whichever point is first to need them. On a machine with GPUs as
many points run at once as have their own; elsewhere one does, or as many as --parallel says. A point that fails does not stop
the others. On Slurm the points are one array.

The end is a table, and the page of dpo-report that compares the points: .nemotron/sweeps/TIME-NAME has it with sweep.json and
what the jobs printed. A sweep that was interrupted goes on by the same command: what is done is up to date. A comma inside
brackets or quotes belongs to the value. Exit status: 0 all points are done; 1 one failed; 2 called wrongly; 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nemotron_dpo import cli, launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.wording import counted

if TYPE_CHECKING:
    from nemotron_dpo.steps.compile.compiled_run import CompiledRun
    from nemotron_dpo.steps.profiles.profile import Profile
    from nemotron_dpo.steps.sweep.points import Point
    from nemotron_dpo.steps.sweep.record import PointJob

PROGRAM = "dpo-sweep"
SAY = functools.partial(cli.say, PROGRAM)


@click.command(help=__doc__)
@click.argument("step")
@click.argument("tokens", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option(
    "--sweep", "sweeps", multiple=True, required=True, metavar="KEY=A,B,C", help="Values of a key; several make a grid."
)
@click.option("--parallel", type=click.IntRange(min=1), metavar="N", help="Points at once; on Slurm the most of the array.")
@click.option("--name", default="sweep", show_default=True, metavar="NAME", help="What the names of the jobs begin with.")
@click.option("-c", "--config", type=cli.PATH, metavar="NAME|PATH", help="A config of the step, or a YAML file.")
@click.option("-r", "--run", "attached", metavar="PROFILE", help="Run where PROFILE of env.toml says, and follow it.")
@click.option("-b", "--batch", "detached", metavar="PROFILE", help="Submit where PROFILE of env.toml says, and return.")
@click.option("-d", "--dry-run", is_flag=True, help="Print the points and their commands; touch nothing.")
@click.option("--force", is_flag=True, help="Run every stage of every point, up to date or not.")
@click.option("-v", "--verbose", is_flag=True, help="As nemotron-steps run has it.")
@click.option("--strict", is_flag=True, help="As nemotron-steps run has it.")
@click.option("--oversubscribe", is_flag=True, help="As nemotron-steps run has it.")
@click.option("--force-squash", is_flag=True, help="As nemotron-steps run has it.")
def command(
    step: str,
    tokens: tuple[str, ...],
    sweeps: tuple[str, ...],
    parallel: int | None,
    name: str,
    config: str | None,
    attached: str | None,
    detached: str | None,
    dry_run: bool,
    **flags: bool,
) -> int:
    from nemotron_dpo.config import checked_name
    from nemotron_dpo.steps.profiles.env_file import load_profile
    from nemotron_dpo.steps.sweep.points import LENGTHS, points

    launcher.refuse_job()
    if attached is not None and detached is not None:
        raise UserError("-r follows a run and -b leaves it alone", remedy="give one of them", usage=True)
    profile = load_profile(detached if attached is None else attached)
    grid = points(sweeps, checked_name(name, "--name"), [token.partition("=")[0] for token in tokens])
    anew = any(sweep.partition("=")[0] in LENGTHS for sweep in sweeps)
    named = {"-c": config, "-r": attached, "-b": detached}
    head = ["run", step, *(word for option, value in named.items() if value is not None for word in (option, value))]
    head += [f"--{flag.replace('_', '-')}" for flag, given in {"anew": anew, **flags}.items() if given]
    compiled = [_compiled(point, step, config, tokens, profile, flags) for point in grid]
    if profile.executor == "slurm":
        scoring = functools.partial(_compiled, grid[0], step, config, tokens, profile, flags, scores=f"{name}-scores")
        asked = {"sweeps": sweeps, "parallel": parallel, "name": name, "attached": detached is None, "dry_run": dry_run}
        return _run_on_slurm(compiled, grid, scoring, profile, force_squash=flags["force_squash"], **asked)
    if profile.executor != "local":
        what = f"is {profile.executor}, and sweeps are run here or on Slurm"
        raise UserError(what, source=f"profile {profile.name}", field="executor", remedy="run each point by itself")
    if dry_run:
        for point in grid:
            print(_shown(["nemotron-steps", *_words(head, tokens, point)]))
        return 0
    return _run_here(compiled, grid, functools.partial(_words, head, tokens), parallel, name)


def _words(head: Sequence[str], tokens: Sequence[str], point: Point) -> list[str]:
    """The command of a point, without its program."""
    return [*head, *tokens, *point.settings, "--name", point.name]


def _compiled(
    point: Point,
    step: str,
    config: str | None,
    tokens: Sequence[str],
    profile: Profile,
    flags: dict[str, bool],
    *,
    scores: str | None = None,
) -> CompiledRun:
    """The run of a point, compiled to find its mistakes before any point is run; up to its `scores`, under that name.

    Raises UserError.
    """
    from nemotron_dpo.steps.compile.compiled_run import Request, compile_run

    asked: dict[str, Any] = {name: flags[name] for name in ("force", "oversubscribe", "force_squash")}
    asked |= {"name": scores or point.name, "last": "ref-logprobs" if scores else None}
    request = Request(step, sys.argv, (*tokens, *point.settings), config=config, dry_run=True, **asked)
    try:
        run = compile_run(request, profile, lambda line: None)
        for line in run.planner.missing(run.config, look=profile.sees_our_files):
            raise UserError(line)
    except UserError as error:
        SAY(f"in the point {' '.join(point.settings)}:")
        raise error from None
    kept = getattr(getattr(run.config, "checkpointing", None), "checkpoint_dir", None)
    if kept and not Path(kept).is_relative_to(run.plan.job):
        message, remedy = "is one folder for the checkpoints of all points", "leave it out: each job has its own"
        raise UserError(message, source=kept, field="checkpointing.checkpoint_dir", remedy=remedy)
    return run


def _run_here(compiled: Sequence[CompiledRun], grid: Sequence[Point], of_point: Any, parallel: int | None, name: str) -> int:
    """Run the points here; the exit status of the sweep."""
    from nemotron_dpo.config import redact_argv
    from nemotron_dpo.steps.sweep import local, record

    folder = record.sweep_folder(name, datetime.now())
    slots = _slots(parallel, compiled[0].plan.num_processes)
    folder.mkdir(parents=True)
    argv = redact_argv(["dpo-sweep", *sys.argv[1:]])
    sweep = local.Sweep(grid, of_point, folder, functools.partial(record.write, folder, argv), SAY)
    jobs = local.run_points(sweep, slots)
    print(record.summary(jobs))
    page = _compare([job for job in jobs if job.status == "done"], folder)
    print(f"\n{counted(len(grid), 'point')}, {sum(job.status == 'done' for job in jobs)} done; compared in {page}")
    return 0 if all(job.status == "done" for job in jobs) else 1


def _run_on_slurm(
    compiled: Sequence[CompiledRun],
    grid: Sequence[Point],
    scoring: Callable[[], CompiledRun],
    profile: Profile,
    *,
    sweeps: Sequence[str],
    parallel: int | None,
    name: str,
    attached: bool,
    dry_run: bool,
    force_squash: bool,
) -> int:
    """Submit the points as one array; where `attached`, the exit status is that of the job that compares them."""
    from nemotron_dpo.config import redact_argv
    from nemotron_dpo.steps.executors.slurm import array
    from nemotron_dpo.steps.sweep import on_slurm, record
    from nemotron_dpo.steps.sweep.points import shares_scores

    sweep = record.sweep_folder(name, datetime.now())
    first = on_slurm.scores_for_all(scoring, compiled) if shares_scores(sweeps) else None
    made = on_slurm.array_of(compiled, first, profile, sweep, at_once=parallel, attached=attached)
    if dry_run:
        for what, text in array.dry_lines(made):
            print(f"# {what}\n{text}")
        return 0
    on_slurm.write_records(compiled, grid, first, sweep, redact_argv(["dpo-sweep", *sys.argv[1:]]))
    shared = made.jobs[0].settings.is_shared
    status = array.submit(made, attached=attached, force_squash=force_squash, say=SAY, show=_show, is_shared=shared)
    if attached:
        print(f"compared in {made.folder}/{record.PAGE}")
    return status


def _show(content: bytes) -> None:
    sys.stderr.buffer.write(content)
    sys.stderr.buffer.flush()


def _slots(parallel: int | None, processes: int) -> Any:
    """How many points run at once: as many as have GPUs of their own; without GPUs one, unless more were asked for."""
    from nemotron_dpo.steps.executors.local.machine import gpus_here
    from nemotron_dpo.steps.sweep.local import Slots

    gpus = gpus_here()
    fit = max(1, len(gpus) // processes) if gpus else 1
    if gpus and parallel is not None and parallel > fit:
        what = f"{len(gpus)} GPUs are enough for {fit} points of {processes} processes at once"
        raise UserError(what, source=f"--parallel {parallel}", remedy=f"give --parallel {fit}, or leave it out", usage=True)
    return Slots(parallel or fit, gpus, processes)


def _compare(done: Sequence[PointJob], folder: Path) -> Path | str:
    """The page that compares the points that are done, or why there is none."""
    from nemotron_dpo.steps.sweep.record import PAGE

    runs = [str(job.folder) for job in done]
    if not runs:
        return "no page: none is done"
    argv = [sys.executable, "-m", "dpo_report", *(["--compare"] if len(runs) > 1 else []), *runs, "-o", str(folder / PAGE)]
    environment = dict(os.environ)
    made = subprocess.run(argv, env=environment, capture_output=True, stdin=subprocess.DEVNULL)
    said = made.stderr.decode(errors="replace").strip().splitlines()
    return folder / PAGE if made.returncode == 0 else f"no page ({said[-1] if said else f'exit {made.returncode}'})"


def _shown(argv: Sequence[str]) -> str:
    import shlex

    from nemotron_dpo.config import redact_argv

    return shlex.join(redact_argv(argv))


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()

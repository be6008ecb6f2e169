"""A compiled run on this machine: its plan printed, its stages run in the foreground or the background, its end reported."""

from __future__ import annotations

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import job_record as job
from nemotron_dpo.steps.compile import stage_cache as cache
from nemotron_dpo.steps.compile import stage_choice as choice
from nemotron_dpo.steps.compile.compiled_run import Run, Say, forecast_parts, print_config, print_parts
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.dpo_plan import TOKENIZE_TRAIN
from nemotron_dpo.steps.executors.local import stages as local


def run_here(run: Run, say: Say) -> int:
    """Run it, or print its plan; returns the exit status. Raises UserError for what is missing."""
    _tell_idle(run, say)
    digests, env = Digests(cache.DIGESTS, peek=run.request.dry_run), run.profile.env_vars
    choice.check_given(run.plan, run.choices, digests, env)
    if run.request.dry_run:
        return _print_plan(run, say)
    for line in run.kind.missing(run.config):
        raise UserError(line)
    job.write_job(run.plan, run.provenance, run.created)
    if not run.request.attached and (child := local.detach(run.plan.job / "log.txt")):
        print(f"{child}\nfollow it: tail -f {run.plan.job}/log.txt\ncancel it: kill {child}")
        return 0
    return _execute(run, say)


def _tell_idle(run: Run, say: Say) -> None:
    if run.request.force_squash:
        say("warning: --force-squash: a local run has no container image")
    if idle := run.profile.idle_keys():
        say(f"warning: {run.profile.source or 'run.env'}: without effect in a local run: {', '.join(idle)}")


def _print_plan(run: Run, say: Say) -> int:
    """The merged config and the commands; what is up to date is found without long reading."""
    for line in run.kind.missing(run.config):
        say(f"warning: {line}")
    print_config(run)
    decisions = list(choice.decide(run.plan, run.choices, Digests(cache.DIGESTS, peek=True), run.profile.env_vars))
    stages = [job.decision_line(decision) for decision in decisions]
    pairs = next((d.entry.places[0] for d in decisions if d.entry and d.stage.name == TOKENIZE_TRAIN), None)
    print_parts([*forecast_parts(run, pairs), *job.file_lines(run.plan), *job.prelude_lines(run.plan), *stages])
    return 0


def _execute(run: Run, say: Say) -> int:
    try:
        local.run_plan(run.plan, run.profile.env_vars, run.choices, say)
    except local.StageFailed as failure:
        say(f"error: {failure}; the job is in {run.plan.job}")
        return failure.status
    if run.ends_early:
        last = run.choices[-1].stage
        print(f"stopped after {last.name}: {', '.join(map(str, last.outputs))}")
    else:
        print(run.kind.report(run.plan))
    return 0

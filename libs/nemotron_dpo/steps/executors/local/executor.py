"""The local executor: the stages of a run on this machine, in the foreground or the background, and its end reported."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nemotron_dpo.errors import DIVERGED, UserError
from nemotron_dpo.kernels import choice
from nemotron_dpo.steps.compile import job_record, job_state, stage_cache, stage_choice
from nemotron_dpo.steps.compile.compiled_run import CompiledRun, Say
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.dpo_plan import MAKE_TRAIN, SLOW
from nemotron_dpo.steps.compile.stages import Stage
from nemotron_dpo.steps.executors.local.machine import too_large
from nemotron_dpo.steps.executors.local.stages import StageFailed, detach, run_plan
from nemotron_dpo.steps.executors.shared.dry_run import forecast_parts, print_config, print_parts
from nemotron_dpo.steps.executors.shared.environment import local_environment
from nemotron_dpo.steps.profiles.profile import CheckedProfile


class LocalExecutor:
    """This machine."""

    def print_plan(self, run: CompiledRun, say: Say) -> None:
        """What is up to date is found without long reading."""
        digests = self._checked(run, say)
        for line in (*run.planner.missing(run.config), *_too_large(run)):
            say(f"warning: {line}")
        print_config(run)
        decisions = list(stage_choice.decide(run.plan, run.choices, digests, run.profile.env_vars))
        stages = [job_record.decision_line(decision) for decision in decisions]
        pairs = next((d.entry.places[0] for d in decisions if d.entry and d.stage.name in MAKE_TRAIN), None)
        files, prelude = job_record.file_lines(run.plan), job_record.prelude_lines(run.plan)
        print_parts([*forecast_parts(run, pairs), *files, *prelude, *stages])

    def execute(self, run: CompiledRun, say: Say) -> int:
        """Run the stages, in a background process where nobody stays with them."""
        self._checked(run, say)
        for line in (*_too_large(run), *run.planner.missing(run.config)):
            raise UserError(line)
        job_record.write_job(run.plan, run.provenance, run.created)
        log = run.plan.job / "log.txt"
        if not run.request.attached and (child := detach(log)):
            print(f"{child}\nfollow it: tail -f {log}\ncancel it: kill {child}")
            return 0
        with job_state.stands(run.plan.job) as state:
            try:
                expected = Expected(run, say)
                run_plan(run.plan, local_environment(run.profile), run.choices, say, state, expected.before)
            except StageFailed as failure:
                state.end("stopped" if failure.status == DIVERGED else "failed", failure.status, str(failure))
                say(f"error: {failure}; the job is in {run.plan.job}")
                return failure.status
            state.end("done", 0)
        print(_report(run))  # with nobody to read it, the job is done as well
        return 0

    def _checked(self, run: CompiledRun, say: Say) -> Digests:
        """Digests to decide with, after what makes the run impossible is refused and what has no effect is said."""
        CheckedProfile(run.profile)
        choice.asked_for({**os.environ, **run.profile.env_vars})
        if run.request.force_squash:
            say("warning: --force-squash: a local run has no container image")
        if idle := [key for key in run.profile.idle_keys() if f'"run.env.{key}" ' not in " ".join(run.idle)]:
            say(f"warning: {run.profile.source or 'run.env'}: without effect in a local run: {', '.join(idle)}")
        for line in run.planner.short(run.config):
            say(f"warning: {line}")
        digests = Digests(stage_cache.DIGESTS, peek=run.request.dry_run)
        stage_choice.check_given(run.plan, run.choices, digests, run.profile.env_vars)
        return digests


EXECUTOR = LocalExecutor()


@dataclass
class Expected:
    """Says once how long a run is going to take: as soon as its pairs are tokenized, before the stage that takes long."""

    run: CompiledRun
    say: Say
    is_said: bool = False

    def before(self, stage: Stage) -> None:
        """To be called before each stage that runs."""
        made = next((one.outputs[0] for one in self.run.plan.stages if one.name in MAKE_TRAIN), None)
        if self.is_said or made is None or not made.exists() or stage.name not in SLOW:
            return
        self.is_said = True
        if time := self.run.planner.time(self.run.config, self.run.profile, made, is_scored=stage.name == SLOW[-1]):
            self.say(f"expected: {time}")


def _too_large(run: CompiledRun) -> list[str]:
    """Why this machine is too small for the run, unless that is what was asked for."""
    cluster = getattr(run.config, "cluster", None)
    is_meant = run.request.oversubscribe and (cluster is None or cluster.num_nodes == 1)
    return [] if is_meant else too_large(run.config)


def _report(run: CompiledRun) -> str:
    if not run.ends_early:
        return run.report(run.plan)
    last = run.choices[-1].stage
    return f"stopped after {last.name}: {', '.join(map(str, last.outputs))}"

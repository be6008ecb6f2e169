"""What came of a run of DPO, and the commands that look at it, use it and make it better."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nemotron_dpo import launcher
from nemotron_dpo.config import RunConfig
from nemotron_dpo.config.objective import BETA_KEY, parts_of
from nemotron_dpo.errors import UserError
from nemotron_dpo.outcome import Outcome, outcome, read_metrics
from nemotron_dpo.step_folders import policy_of, step_of
from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.summary import summarize


def report(plan: Plan, run: RunConfig, typed: Sequence[str]) -> str:
    """The report of `run`, which was asked for by the command `typed`."""
    from nemotron_dpo.preferences.mixture import counts_by_source

    metrics = plan.run_dir / "metrics.jsonl"
    made = outcome(read_metrics(metrics))
    places: dict[str, Path | str | None] = {"metrics": metrics, "checkpoint": _exported(plan, run)}
    if made.num_steps:
        places["report"] = _page(plan)
    mixed = next((stage.outputs[0] for stage in plan.stages if stage.name == "mixture train"), None)
    sources = counts_by_source(mixed) if mixed else {}
    return summarize(made, places, _next(plan, run, made, typed) if made.num_steps else (), sources)


def _exported(plan: Plan, run: RunConfig) -> str | None:
    """The checkpoint at the end, and which step of the run it is."""
    if plan.export_dir is None:
        return None
    which = str(run.checkpointing.export_step)
    try:
        policy = policy_of(Path(run.checkpointing.checkpoint_dir or plan.run_dir), which)
    except UserError:  # it was removed meanwhile, or its records are damaged: what was exported is still there
        policy = None
    step = f"step {step_of(policy.parent)}, " if policy is not None else ""
    named = {"last": "the last", "best": f"the best by {run.checkpointing.metric_name}"}.get(which, "as asked for")
    return f"{plan.export_dir} ({step}{named})"


_PAGE_SECONDS = 300


def _page(plan: Plan) -> Path | str:
    """The page on the run, or why there is none: what was trained stands, whatever becomes of its picture."""
    target = plan.job / "report.html"
    environment = dict(os.environ)
    launcher.remove_job(environment)
    try:
        argv = [executable("dpo-report"), str(plan.run_dir), "-o", str(target)]
        done = subprocess.run(argv, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PAGE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not written ({error})"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return target if done.returncode == 0 else f"not written ({said[-1] if said else f'exit {done.returncode}'})"


def _next(plan: Plan, run: RunConfig, made: Outcome, typed: Sequence[str]) -> list[str]:
    """Score it on rows it has not seen, take it out, and run again with what may do better; what is cached is used again."""
    again = shlex.join(_with(typed, _change(run, made), *_own_folder(plan, run)))
    if plan.export_dir is None:
        return [again]
    trained, policy = str(plan.export_dir), str(plan.prelude.checkpoint if plan.prelude else run.policy.model_name)
    score = [f"policy.model_name={trained}", f"reference.model_name={policy}", "data.path=HELD_OUT.jsonl"]
    export = ["ckpt-export", trained, "-o", str(plan.job / "checkpoint_hf"), "--to", "hf"]
    return [shlex.join(["nemotron-steps", "run", "eval/preference_score", *score]), shlex.join(export), again]


def _change(run: RunConfig, made: Outcome) -> str:
    """The setting to try next: a higher rate where nothing was learned, fewer steps where too much was, else a milder loss.

    Where all was warm-up, a shorter one gives the higher rate. The milder loss is that of a greater beta, and where the
    objective has none a lower rate is tried.
    """
    warm_up = made.shorter_warm_up(run.policy.scheduler.warmup_steps)
    turned = [one for one in made.validations if one.turned and one.best_step > 0]
    if made.learned_nothing and warm_up is not None:
        return f"policy.scheduler.warmup_steps={warm_up}"
    if made.learned_nothing:
        return f"policy.optimizer.lr={10 * run.policy.optimizer.lr:g}"
    if turned:
        return f"dpo.max_num_steps={turned[0].best_step}"
    if not any(BETA_KEY in part.settings for part in parts_of(run.dpo)):
        return f"policy.optimizer.lr={run.policy.optimizer.lr / 2:g}"
    return f"dpo.{BETA_KEY}={2 * run.dpo.reference_policy_kl_penalty:g}"


def _own_folder(plan: Plan, run: RunConfig) -> list[str]:
    """Another folder for the checkpoints, where theirs does not go with the job: steps of two settings must not mix."""
    folder = run.checkpointing.checkpoint_dir
    if not folder or not run.checkpointing.enabled or Path(folder).is_relative_to(plan.job):
        return []
    start, _, number = folder.rstrip("/").rpartition("-")
    counts = start and number.isdecimal() and len(number) < 3
    return [f"checkpointing.checkpoint_dir={f'{start}-{int(number) + 1}' if counts else folder.rstrip('/') + '-2'}"]


def _with(typed: Sequence[str], *settings: str) -> list[str]:
    """The command with `settings` in place of others of the same keys, and without the name that this job has.

    What is up to date is not to be made again.
    """
    left = {"--force", "--name", "run.name", *(setting.partition("=")[0] for setting in settings)}
    words = [word for before, word in pairwise(["", *typed]) if before != "--name" and word.partition("=")[0] not in left]
    return [*words, *settings]

"""What came of a run of DPO, and the commands that look at it, use it and make it better."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nemotron_dpo.config import RunConfig
from nemotron_dpo.outcome import Outcome, is_noise, outcome, read_metrics
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.summary import summarize


def report(plan: Plan, run: RunConfig, typed: Sequence[str]) -> str:
    """The report of `run`, which was asked for by the command `typed`."""
    from nemotron_dpo.preferences.mixture import counts_by_source

    metrics = plan.run_dir / "metrics.jsonl"
    made = outcome(read_metrics(metrics))
    places = {"metrics": metrics, "checkpoint": plan.export_dir}
    mixed = next((stage.outputs[0] for stage in plan.stages if stage.name == "mixture train"), None)
    sources = counts_by_source(mixed) if mixed else {}
    return summarize(made, places, _next(plan, run, made, typed) if made.num_steps else (), sources)


def _next(plan: Plan, run: RunConfig, made: Outcome, typed: Sequence[str]) -> list[str]:
    """Score it on rows it has not seen, take it out, and run again with what may do better; what is cached is used again."""
    again = shlex.join([*typed, _change(run, made)])
    if plan.export_dir is None:
        return [again]
    trained, policy = str(plan.export_dir), str(plan.prelude.checkpoint if plan.prelude else run.policy.model_name)
    score = [f"policy.model_name={trained}", f"reference.model_name={policy}", "data.path=HELD_OUT.jsonl"]
    export = ["ckpt-export", trained, "-o", str(plan.job / "checkpoint_hf"), "--to", "hf"]
    return [shlex.join(["nemotron-steps", "run", "eval/preference_score", *score]), shlex.join(export), again]


def _change(run: RunConfig, made: Outcome) -> str:
    """The setting to try next: a higher rate where nothing was learned, fewer steps where too much was, else a milder loss."""
    turned = [one for one in made.validations if one.turned and one.best_step > 0]
    if is_noise(made.ends.last):
        return f"policy.optimizer.lr={10 * run.policy.optimizer.lr:g}"
    if turned:
        return f"dpo.max_num_steps={turned[0].best_step}"
    return f"dpo.reference_policy_kl_penalty={2 * run.dpo.reference_policy_kl_penalty:g}"

"""Start a stage of training from what another job trained: policy.model_name=JOBFOLDER means a step of it, its best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import RunConfig
from nemotron_dpo.documents import yaml_mapping
from nemotron_dpo.errors import UserError
from nemotron_dpo.step_folders import BEST, LAST, policy_of, ranking, step_of

EXPORT = "checkpoint_megatron"


def from_job(run: RunConfig) -> tuple[RunConfig, list[str]]:
    """`run` with the policy of the best step where `policy.model_name` is a job or a run of dpo-train; and a line that says so.

    Where the steps are ranked by nothing, or none was measured, it is the last one. A step of LoRA is adapters, so there it is
    what the job exported, which is whole. Raises UserError where that is not there.
    """
    given = Path(str(run.policy.model_name)).expanduser()
    last = policy_of(given, LAST) if given.is_dir() else None
    if last is None or last.parent == given:
        return run, []
    policy, why = _best(given, last)
    if _has_adapters(policy):
        policy, why = _exported(given), "which its adapters are merged into"
    return replace(run, policy=replace(run.policy, model_name=str(policy))), [f"policy.model_name: {policy}, {why}"]


def _best(job: Path, last: Path) -> tuple[Path, str]:
    """The best step's policy, and why it is that one."""
    try:
        best = policy_of(job, BEST)
        metric, _ = ranking(last.parent)
    except UserError as error:
        return last, f"the last step of {job} ({error.message})"
    assert best is not None
    return best, f"the best step of {job} by {metric}" + ("" if best == last else f", whose last is {step_of(last.parent)}")


def _has_adapters(policy: Path) -> bool:
    try:
        tree = yaml_mapping(policy.parent / "config.yaml")
        return bool(tree["policy"]["megatron_cfg"]["peft"]["enabled"])
    except (KeyError, TypeError):  # what it then is, who reads the weights will say
        return False


def _exported(job: Path) -> Path:
    if not (job / EXPORT).is_dir():
        remedy = f"merge them: nemotron-steps run convert/merge_lora lora_checkpoint={job}"
        raise UserError("its steps are adapters, and no whole policy", source=job, field="policy.model_name", remedy=remedy)
    return job / EXPORT

"""Start a stage of training from what another job trained: policy.model_name=JOBFOLDER means a step of it, its best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import RunConfig
from nemotron_dpo.documents import yaml_mapping
from nemotron_dpo.errors import UserError
from nemotron_dpo.step_folders import BEST, LAST, policy_of, ranking, step_of
from nemotron_dpo.steps.profiles.profile import Profile

EXPORT = "checkpoint_megatron"
_RECORD = "job.yaml"
_FIELD = "policy.model_name"


def from_job(run: RunConfig, profile: Profile) -> tuple[RunConfig, list[str]]:
    """`run` with the policy of the best step where `policy.model_name` is a job or a run of dpo-train; and a line that says so.

    Where the steps are ranked by nothing, or none was measured, it is the last one. A step of LoRA is adapters, so there it is
    what the job exported, which is whole. Raises UserError where that is not there, for a job that saved no step, and where
    the profile's nodes would not find under this name what is here.
    """
    given = Path(str(run.policy.model_name)).expanduser()
    job = _where_it_lies(given)
    last = policy_of(job, LAST) if job.is_dir() else None
    if last.parent == job if last else not _is_job(given):
        return run, []
    if not profile.sees_our_files and not (last and given.is_absolute()):
        raise UserError("is a job in the records of this machine", source=given, field=_FIELD, remedy=_there(given))
    if last is None:
        raise _without_steps(job)
    policy, why = _best(job, last)
    if _has_adapters(policy):
        policy, why = _exported(job), "which its adapters are merged into"
    same = "" if profile.sees_our_files else "; the nodes must have it under this path, too"
    return replace(run, policy=replace(run.policy, model_name=str(policy))), [f"{_FIELD}: {policy}, {why}{same}"]


def _is_job(folder: Path) -> bool:
    return (folder / _RECORD).is_file()


def _where_it_lies(given: Path) -> Path:
    """The folder of the job that `given` is, or is the record of: on Slurm a job lies where its profile says."""
    if not _is_job(given) or (given / "run" / "checkpoints").is_dir():
        return given
    root = _remote_root(given)
    return Path(root) / given.name if root else given


def _remote_root(record: Path) -> str | None:
    """remote_job_dir of the profile that a job was submitted by."""
    profile = yaml_mapping(record / _RECORD).get("profile")
    root = profile.get("remote_job_dir") if isinstance(profile, dict) else None
    return root if isinstance(root, str) else None


def _there(given: Path) -> str:
    """How to name what the job trained, on the nodes."""
    root = _remote_root(given) if _is_job(given) else None
    job = f"{root}/{given.name}" if root else "JOB"
    return f"name what the nodes see: {job}/run/checkpoints/step_N/policy, or what it exported, {job}/{EXPORT}"


def _without_steps(job: Path) -> UserError:
    if not job.is_dir():
        remedy = f"copy what it trained from there, such as {job}/{EXPORT}, and name that"
        return UserError("no such folder here, where the job is said to lie", source=job, field=_FIELD, remedy=remedy)
    return UserError("the job saved no step to start from", source=job, field=_FIELD, remedy="`nemotron-steps runs` lists jobs")


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
        raise UserError("its steps are adapters, and no whole policy", source=job, field=_FIELD, remedy=remedy)
    return job / EXPORT

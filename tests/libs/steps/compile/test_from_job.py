"""A job's folder as policy.model_name: its best step, and what it is where none is the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nemotron_dpo.config import load_run
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile.from_job import from_job
from nemotron_dpo.steps.profiles.profile import Profile

DEFAULT = configs_root() / "rl" / "nemo_rl" / "dpo" / "default.yaml"
METRIC = "val:validation-default_loss"


def _job(folder: Path, losses: dict[int, float | None], metric: str | None = METRIC, *, lora: bool = False) -> Path:
    """A job whose steps were measured as `losses` says."""
    (folder / "run").mkdir(parents=True)
    (folder / "job.yaml").write_text("step: dpo\n")
    for step, loss in losses.items():
        at = folder / "run" / "checkpoints" / f"step_{step}"
        (at / "policy").mkdir(parents=True)
        keep = {"metric_name": metric, "higher_is_better": False}
        (at / "config.yaml").write_text(
            yaml.safe_dump({"checkpointing": keep, "policy": {"megatron_cfg": {"peft": {"enabled": lora}}}})
        )
        (at / "training_info.json").write_text(json.dumps({"total_steps": step, METRIC: loss}))
    return folder


HERE = Profile("here", "local")
BESIDE = Profile("beside", "slurm", settings={"remote_job_dir": "/none"})
FAR = [Profile("far", "slurm", settings={"host": "login"}), Profile("cloud", "lepton")]


def _started(model: object, profile: Profile = HERE) -> tuple[str, list[str]]:
    run, _ = load_run(DEFAULT, [f"policy.model_name={model}", "data.train.path=t.jsonl"])
    run, notes = from_job(run, profile)
    return run.policy.model_name, notes


def test_the_step_that_a_job_stands_for(tmp_path: Path) -> None:
    measured, last = {5: 0.3, 10: 0.5}, "no step is the best: "
    cases = [
        (measured, METRIC, 5, f"the best step of JOB by {METRIC}, whose last is 10"),
        ({5: 0.5, 10: 0.3}, METRIC, 10, f"the best step of JOB by {METRIC}"),
        (measured, None, 10, f"the last step of JOB ({last}checkpointing.metric_name is null)"),
        ({5: None, 10: None}, METRIC, 10, f"the last step of JOB ({last}none was measured by {METRIC})"),
    ]
    for n, (losses, metric, step, why) in enumerate(cases):
        job = _job(tmp_path / str(n), losses, metric)
        for given in (job, job / "run"):
            path = given if given == job / "run" else job / "run"
            policy = f"{path}/checkpoints/step_{step}/policy"
            assert _started(given) == (policy, [f"policy.model_name: {policy}, {why.replace('JOB', str(given))}"])


def test_what_is_no_job_is_left_alone(tmp_path: Path) -> None:
    job = _job(tmp_path / "job", {5: 0.3})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    step = job / "run" / "checkpoints" / "step_5"
    (step / "policy" / "latest_checkpointed_iteration.txt").write_text("5")
    for name in ("org/model", tmp_path / "hf", tmp_path / "none", step / "policy", step):
        assert _started(name) == (str(name), [])


def test_of_adapters_it_is_what_was_exported(tmp_path: Path) -> None:
    job = _job(tmp_path / "job", {5: 0.3}, lora=True)
    with pytest.raises(UserError, match="its steps are adapters, and no whole policy: merge them: nemotron-steps run convert"):
        _started(job)
    (job / "checkpoint_megatron").mkdir()
    assert _started(job)[0] == f"{job}/checkpoint_megatron"


def test_a_cluster_that_shares_our_files_finds_the_step_where_its_profile_put_the_job(tmp_path: Path) -> None:
    remote = _job(tmp_path / "remote" / "one", {5: 0.3, 10: 0.5})
    record = tmp_path / "jobs" / "one"
    record.mkdir(parents=True)
    (record / "job.yaml").write_text(f"profile: {{remote_job_dir: {tmp_path}/remote}}\n")
    best = f"{remote}/run/checkpoints/step_5/policy"
    for given in (remote, record):
        for profile in (HERE, BESIDE):
            assert _started(given, profile)[0] == best


def test_what_the_nodes_would_not_find_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = _job(tmp_path / "job", {5: 0.3})
    record = tmp_path / "record"
    record.mkdir()
    (record / "job.yaml").write_text("profile: {remote_job_dir: /lustre/jobs}\n")
    far = "/lustre/jobs/record"
    named = f"name what the nodes see: {far}/run/checkpoints/step_N/policy, or what it exported, {far}/checkpoint_megatron"
    for profile in FAR:
        with pytest.raises(UserError, match="is a job in the records of this machine: name what the nodes see: JOB/run/"):
            _started("job", profile)
        with pytest.raises(UserError) as refused:
            _started(record, profile)
        assert refused.value.remedy == named
        # a path from the root may be that of a file system that both have
        policy, (note,) = _started(job, profile)
        assert (policy, note.rpartition("; ")[2]) == (
            f"{job}/run/checkpoints/step_5/policy",
            "the nodes must have it under this path, too",
        )
        assert _started("org/model", profile) == ("org/model", [])
    with pytest.raises(UserError, match="no such folder here, where the job is said to lie: copy what it trained from there"):
        _started(record)


def test_a_job_that_saved_nothing_is_refused(tmp_path: Path) -> None:
    for text in ("step: dpo\n", "[", "profile: 3\n"):
        (tmp_path / "job.yaml").write_text(text)
        with pytest.raises(UserError, match="the job saved no step to start from"):
            _started(tmp_path)

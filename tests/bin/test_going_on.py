"""A finished run that is made longer goes on from its last step; a job's folder is where a new stage of training starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.sources import resolve
from support import small
from support.programs import check, losses

PROGRAM = "nemotron-steps"
SMALL = (
    "data.train.limit=32",
    "data.validation=null",
    "policy.train_global_batch_size=8",
    "checkpointing.metric_name=null",
    "checkpointing.save_optimizer=true",
)


def _job(folder: Path, *arguments: object) -> tuple[Path, list[str]]:
    """The folder of the job that this makes, and what `nemotron-steps` itself said."""
    before = {*folder.glob(".nemotron/jobs/*")}
    done = check(PROGRAM, "run", "rl/nemo_rl/dpo", "-c", "tiny", *arguments, *SMALL, cwd=folder)
    (job,) = {*folder.glob(".nemotron/jobs/*")} - before
    return job, [line for line in done.stderr.decode().splitlines() if line.startswith(("nemotron-steps: ", "dpo-train: "))]


@pytest.mark.slow
def test_a_longer_job_goes_on_from_a_shorter_one_and_exports_anew(tmp_path: Path, policy: Path) -> None:
    given = f"policy.model_name={policy}"
    short, _ = _job(tmp_path, given, "dpo.max_num_steps=2")
    longer, said = _job(tmp_path, given, "dpo.max_num_steps=4")
    goes_on = f"dpo-train: goes on from step 2 of {(short / 'run').relative_to(tmp_path)}, a shorter run"
    assert [line for line in said if goes_on in line] == [f"nemotron-steps: {goes_on}; --force trains from the first step"]
    assert "dpo-train: warning: dpo.max_num_steps was 2, is 4: the rest of the run follows the new value" in said
    assert losses(longer / "run")[:2] == losses(short / "run")
    assert len(losses(longer / "run")) == 4
    assert len(losses(short / "run")) == 2
    assert resolve(longer / "checkpoint_megatron").iteration == 4
    fresh, said = _job(tmp_path, given, "dpo.max_num_steps=4", "--from", "dpo-train", "--to", "dpo-train")
    assert not any("goes on" in line for line in said)
    assert losses(fresh / "run") == losses(longer / "run")  # the rate of tiny knows no length
    _a_new_stage_starts_from_a_job(tmp_path, longer.relative_to(tmp_path))


def _a_new_stage_starts_from_a_job(folder: Path, job: Path) -> None:
    step = f"{job}/run/checkpoints/step_4/policy"
    stage = ("run", "rl/nemo_rl/dpo", "-c", "tiny", f"policy.model_name={job}", *SMALL, "--dry-run")
    done = check(PROGRAM, *stage, cwd=folder)
    why = f"the last step of {job} (no step is the best: checkpointing.metric_name is null)"
    assert f"nemotron-steps: policy.model_name: {step}, {why}\n" in done.stderr.decode()
    assert done.stdout.decode().count(f"--policy {step}") == 2  # ref-logprobs and dpo-train


def test_a_rate_that_follows_the_length_of_the_run_is_said(tmp_path: Path, llama: Path) -> None:
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(16, seed=3))
    keys = ["dpo.preference_loss=simpo", "policy.precision=float32", "policy.train_global_batch_size=8"]
    keys += [
        "policy.max_total_sequence_length=128",
        "policy.optimizer.lr=0.001",
        "policy.scheduler.name=cosine",
        "policy.scheduler.warmup_steps=0",
    ]
    keys += ["checkpointing.save_optimizer=true", "checkpointing.metric_name=null", "dpo.max_num_epochs=2"]
    base = ("dpo-train", tmp_path / "pairs.arrow", "--policy", llama, "--run-dir", tmp_path / "run", *keys)
    check(*base, "dpo.max_num_steps=2")
    # by hand: a cosine is at 0.5 * (1 + cos(90 deg)) in step 2 of 2, and at 0.5 * (1 + cos(45 deg)) in step 2 of 4
    line = (
        "warning: the learning rate follows the length of the run: so far it was that of 2 steps (step 2: 0.0005), from here on it "
        "is that of 4 steps (step 2: 0.000854): a run of 4 steps from its first would end elsewhere"
    )
    assert f"dpo-train: {line}\n" in check(*base, "dpo.max_num_steps=4").stderr.decode()
    assert len(losses(tmp_path / "run")) == 4

"""nemotron-steps run --sweep, and pipelines/sweep.sh, which is the same by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from support import forks
from support.forking_python import forking_programs
from support.programs import ROOT, check, losses, run

PROGRAM = "nemotron-steps"
ROWS = configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "validation.jsonl"
SMALL = ("data.train.limit=16", "data.validation=null", "checkpointing.metric_name=null", "dpo.max_num_steps=1")
SIZES = "policy.train_global_batch_size=8,64"  # of 16 pairs no 64 can be drawn: the second point fails when it trains


@pytest.mark.slow
def test_points_are_jobs_on_one_reference_pass_and_one_that_fails_is_said(tmp_path: Path, policy: Path) -> None:
    arguments = (
        "run",
        "rl/nemo_rl/dpo",
        "-c",
        "tiny",
        f"policy.model_name={policy}",
        *SMALL,
        "--sweep",
        SIZES,
        "--name",
        "sizes",
    )
    done = run(PROGRAM, *arguments, cwd=tmp_path)
    said, table = done.stderr.decode(), done.stdout.decode()
    assert done.returncode == 1, said
    assert said.count("ref-logprobs: scoring 16 pairs") == 1
    assert "ref-logprobs train: up to date, taken from" in said
    failed = [
        line for line in said.splitlines() if line.startswith("dpo-sweep: policy.train_global_batch_size=64: failed (exit 1): ")
    ]
    assert failed[0].endswith("; the others go on")
    (sweep,) = (tmp_path / ".nemotron" / "sweeps").iterdir()
    points = json.loads((sweep / "sweep.json").read_text())["points"]
    assert [point["status"] for point in points] == ["done", "failed"]
    assert points[0]["job"].endswith("-rl-nemo_rl-dpo-sizes-train_global_batch_size=8")
    assert f"2 points, 1 done; compared in {(sweep / 'compare.html').relative_to(tmp_path)}" in table
    assert (sweep / "compare.html").is_file()
    assert len(losses(tmp_path / points[0]["job"] / "run")) == 1


@pytest.mark.slow
def test_mistakes_are_found_before_any_point_is_run(tmp_path: Path, policy: Path) -> None:
    given = ("run", "rl/nemo_rl/dpo", "-c", "tiny", f"policy.model_name={policy}")
    beta = "dpo.reference_policy_kl_penalty"
    cases = [
        (("--sweep", f"{beta}=0.1,x"), 1, f"{beta}=x"),
        (("--sweep", f"{beta}=0.1,0.1"), 2, "has a value twice"),
        (("--sweep", "dpo.bets=0.1,0.2"), 1, "dpo.bets"),
        (
            ("--sweep", f"{beta}=0.1,0.2", "checkpointing.checkpoint_dir=x"),
            1,
            "is one folder for the checkpoints of all points",
        ),
        (("--parallel", "2"), 2, "--parallel: is for the points of a sweep"),
    ]
    for arguments, status, what in cases:
        done = run(PROGRAM, *given, *arguments, cwd=tmp_path)
        assert done.returncode == status, done.stderr.decode()
        assert what in done.stderr.decode().splitlines()[-1], arguments
    lines = check(PROGRAM, *given, "--sweep", f"{beta}=0.1,0.2", "--dry-run", cwd=tmp_path).stdout.decode().splitlines()
    head = f"nemotron-steps run rl/nemo_rl/dpo -c tiny policy.model_name={policy}"
    assert lines == [f"{head} {beta}={value} --name sweep-reference_policy_kl_penalty={value}" for value in ("0.1", "0.2")]
    anew = check(PROGRAM, *given, "--sweep", "dpo.max_num_steps=1,2", "--dry-run", cwd=tmp_path).stdout.decode()
    assert anew.count(" --anew ") == 2
    assert not (tmp_path / ".nemotron").exists()


@pytest.mark.slow
def test_the_shell_loop_is_the_same(tmp_path: Path, policy: Path) -> None:
    """The programs are found on PATH, as in an activated environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(ROWS.read_text().splitlines(keepends=True)[:16]))
    argv = [ROOT / "pipelines" / "sweep.sh", rows, policy, tmp_path / "work", SIZES]
    argv += ["policy.max_total_sequence_length=2048", "dpo.max_num_steps=1", "checkpointing.metric_name=null"]
    argv += ["policy.scheduler.warmup_steps=0"]
    env = {**os.environ, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with forking_programs(folder) if forks.can_fork(env) else nullcontext():
        done = subprocess.run(list(map(str, argv)), capture_output=True, env=env, check=False)
    assert done.stderr.decode().endswith("sweep.sh: failed: policy.train_global_batch_size=64\n")
    assert done.returncode == 1
    assert (tmp_path / "work" / "policy.train_global_batch_size=8" / "done").is_file()
    assert (tmp_path / "work" / "compare.html").is_file()
    other = subprocess.run([*map(str, argv), "dpo.seed=7"], capture_output=True, env=env, check=False)
    assert other.returncode == 2
    assert b"work holds a sweep of other arguments: give these, or another WORK_DIR: " in other.stderr
    none = subprocess.run([*map(str, argv[:4]), "dpo.seed="], capture_output=True, env=env, check=False)
    assert none.returncode == 2
    assert b"sweep.sh: error: dpo.seed: no values: dpo.seed=A,B,C" in none.stderr
    usage = subprocess.run([ROOT / "pipelines" / "sweep.sh", "x"], capture_output=True, check=False)
    assert usage.returncode == 2
    assert b"Usage: pipelines/sweep.sh PREFS POLICY WORK_DIR KEY=A,B,C" in usage.stderr

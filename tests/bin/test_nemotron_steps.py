"""nemotron-steps as a program: the documented commands, the record it leaves, failures, and the whole tiny run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from nemotron_dpo.config import load_run
from nemotron_dpo.steps.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from programs import BIN, check, error_line, metrics, run

PROGRAM = "nemotron-steps"
DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data"
SECRET = "hf_" + "abcdefghij" * 3
TINY = ["run", "rl/nemo_rl/dpo", "-c", "tiny"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA / "train.jsonl"], folder)
    return folder


@pytest.fixture
def broken_data(tmp_path: Path) -> Path:
    """Preference rows of which the second is not JSON: the first stage fails on it, before torch is needed."""
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all workers of a test session."""
    root = tmp_path_factory.getbasetemp()
    return (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "cache"


def _job(folder: Path) -> Path:
    (job,) = (folder / ".nemotron" / "jobs").iterdir()
    return job


LISTED = [
    (["list"], "rl/nemo_rl/dpo"),
    (["list", "--category", "rl", "--tag", "dpo"], "rl/nemo_rl/dpo"),
    (["list", "--consumes", "training_jsonl", "--produces", "checkpoint_megatron"], "rl/nemo_rl/dpo"),
    (["list", "--tree"], "    dpo  Direct preference optimization"),
    (["show", "dpo"], "dpo.reference_policy_kl_penalty"),
]


@pytest.mark.parametrize(("arguments", "line"), LISTED)
def test_list_and_show(arguments: list[str], line: str):
    assert line in check(PROGRAM, *arguments).stdout.decode()


@pytest.mark.parametrize("option", ["--category", "--tag", "--consumes", "--produces"])
def test_filters_leave_out(option: str):
    assert json.loads(check(PROGRAM, "list", option, "none", "--json").stdout) == []


def test_json():
    (listed,) = json.loads(check(PROGRAM, "list", "--json").stdout)
    assert listed == json.loads(check(PROGRAM, "show", "dpo", "--json").stdout)
    assert [item["type"] for item in listed["produces"]] == ["checkpoint_megatron"]


DRY = [
    ["run", "rl/nemo_rl/dpo", "-c", "tiny", "--dry-run"],
    ["run", "rl/nemo_rl/dpo", "-c", "default", "--dry-run"],
    ["run", "dpo", "dpo.seed=3", "-d"],
    ["run", "dpo", "dpo.max_num_steps=1000", "-c", "default", "policy.optimizer.lr=1.0e-6", "-d"],
]


@pytest.mark.parametrize("arguments", DRY)
def test_dry_run_touches_nothing(tmp_path: Path, arguments: list[str]):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    shown = check(PROGRAM, *arguments, cwd=tmp_path, env=env).stdout.decode()
    assert "# dpo-train\n" in shown
    assert "policy.optimizer.lr" in shown
    assert list(tmp_path.iterdir()) == []


def test_overrides_before_and_after_options(tmp_path: Path):
    shown = check(PROGRAM, "run", "dpo", "dpo.seed=3", "-c", "tiny", "dpo.val_period=4", "-d", cwd=tmp_path).stdout.decode()
    lines = [line.split() for line in shown.splitlines()]
    for line in (
        ["dpo.seed", "3"],
        ["dpo.val_period", "4"],
        ["dpo.max_num_steps", "10"],
        ["policy.train_global_batch_size", "16"],
    ):
        assert line in lines


def test_documented_values_of_tiny():
    run_config, warnings = load_run(configs_root() / "rl" / "nemo_rl" / "dpo" / "tiny.yaml", [])
    assert warnings == []
    dpo, trained = run_config.dpo, run_config.policy
    assert (dpo.max_num_steps, dpo.val_period, dpo.val_batches) == (10, 5, 2)
    assert (trained.train_global_batch_size, trained.max_total_sequence_length) == (16, 2048)


@pytest.mark.parametrize("name", ["default", "tiny", "smollm2", "tiny_sft/sft"])
def test_shipped_configs_are_clean(name: str):
    assert load_run(configs_root() / "rl" / "nemo_rl" / "dpo" / f"{name}.yaml", [])[1] == []


FAILURES = [
    (["run", "dpo", "-r", "a", "-b", "b"], 2, "-r follows a run and -b leaves it alone: give one of them"),
    (["run", "dop"], 1, "dop: no such step: did you mean rl/nemo_rl/dpo? `nemotron-steps list` shows all"),
    (["run", "dpo", "-c", "tinny"], 1, "tinny: no such config: did you mean tiny? rl/nemo_rl/dpo has default, smollm2, tiny; or give a path"),  # noqa: E501
    (["run", "dpo", "dpo.sed=1"], 1, 'dpo.sed=1: "dpo.sed" is no known key: did you mean dpo.seed?'),
    (["run", "dpo", "cluster.gpus_per_node=3"], 1, '"policy.train_global_batch_size" 32 does not divide over 3 data-parallel ranks: make it a multiple of 3'),  # noqa: E501
    (["run", "dpo", "policy.megatron_cfg.tensor_model_parallel_size=2"], 1, "1 processes (cluster.*) do not divide into tensor x pipeline parallel groups of 2: make cluster.gpus_per_node x num_nodes a multiple of 2"),  # noqa: E501
    (["run", "dpo"], 1, "data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL"),
    (["run", "dpo", "data.train.path=none.jsonl"], 1, "none.jsonl: no such file: it is the data of train"),
    (["run"], 2, "Missing argument 'STEP': see 'nemotron-steps --help'"),
    (["walk"], 2, "No such command 'walk': see 'nemotron-steps --help'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "line"), FAILURES)
def test_mistakes_are_one_clear_line(tmp_path: Path, arguments: list[str], status: int, line: str):
    done = run(PROGRAM, *arguments, cwd=tmp_path)
    assert (done.returncode, error_line(done, PROGRAM)) == (status, line)
    assert list(tmp_path.iterdir()) == []


def test_other_executors_are_refused_by_name(tmp_path: Path):
    (tmp_path / "env.toml").write_text('[far]\nexecutor = "slurm"\n')
    done = run(PROGRAM, "run", "dpo", "-r", "far", cwd=tmp_path)
    assert (done.returncode, error_line(done, PROGRAM)) == (1, "far: executor slurm is not built yet: use a local profile")


def test_tokens_that_come_to_nothing_are_named(tmp_path: Path):
    done = check(PROGRAM, "run", "dpo", "-d", "--fast", "word", "--cluster={gpus_per_node: 2}", cwd=tmp_path)
    said = done.stderr.decode()
    for token in ("--fast", "word"):
        assert f"nemotron-steps: warning: {token}: names no section of the config and is ignored\n" in said
    assert "--nproc-per-node 2" in done.stdout.decode().replace("\\\n    ", "")


def test_nemotron_is_the_group_above():
    argv = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import nemotron_steps as n; n.nemotron_main()",
    ]
    done = subprocess.run([*argv, str(BIN), "steps", "list"], capture_output=True, text=True)
    assert done.stdout == check(PROGRAM, "list").stdout.decode()


def test_failing_stage_stops_the_run_and_leaves_its_record(tmp_path: Path, policy: Path, broken_data: Path):
    arguments = [f"data.train.prompt_file={broken_data}", "data.validation=null", f"policy.model_name={policy}"]
    secret = [f"logger.wandb.api_key={SECRET}", f"logger.wandb.name={SECRET}"]
    done = run(PROGRAM, *TINY, *arguments, *secret, cwd=tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert f"preference-tokenize: error: {broken_data}:2: " in said
    job = _job(tmp_path)
    last = f"preference-tokenize train failed (exit 1); it said why above; the job is in {job.relative_to(tmp_path)}"
    assert said.splitlines()[-1] == f"nemotron-steps: error: {last}"
    assert sorted(path.name for path in job.iterdir()) == ["job.yaml", "train.yaml"]
    record = yaml.safe_load((job / "job.yaml").read_text())
    assert record["step"] == "rl/nemo_rl/dpo"
    assert record["config"]["overrides"][0] == arguments[0]
    assert [stage["name"] for stage in record["stages"]] == [
        "preference-tokenize train", "ref-logprobs train", "dpo-train", "ckpt-export",
    ]  # fmt: skip
    assert load_run(job / "train.yaml", [])[1] == []
    everything = done.stdout.decode() + said + "".join(path.read_text() for path in job.iterdir())
    assert SECRET not in everything


def test_profile_reaches_the_stages(tmp_path: Path, policy: Path, broken_data: Path):
    profile = f'[here]\nexecutor = "local"\nnproc_per_node = 2\nmounts = ["/a:/a"]\nenv_vars = {{WANDB_API_KEY = "{SECRET}"}}\n'
    (tmp_path / "env.toml").write_text(profile)
    arguments = [f"data.train.prompt_file={broken_data}", f"policy.model_name={policy}"]
    done = run(PROGRAM, "run", "dpo", "-r", "here", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert f"warning: {tmp_path / 'env.toml'}: without effect in a local run: mounts\n" in done.stderr.decode()
    record = yaml.safe_load((_job(tmp_path) / "job.yaml").read_text())
    assert record["profile"]["env_vars"] == {"WANDB_API_KEY": "***"}
    assert record["processes"] == 2
    assert "torchrun" in record["stages"][-2]["command"]


def test_detached_run_goes_on_in_the_background(tmp_path: Path, policy: Path, broken_data: Path):
    (tmp_path / "env.toml").write_text('[here]\nexecutor = "local"\n')
    arguments = [f"data.train.prompt_file={broken_data}", f"policy.model_name={policy}"]
    pid, *how = check(PROGRAM, "run", "dpo", "-b", "here", *arguments, cwd=tmp_path).stdout.decode().splitlines()
    log = _job(tmp_path) / "log.txt"
    assert how == [f"follow it: tail -f {log.relative_to(tmp_path)}", f"cancel it: kill {pid}"]
    for _ in range(600):
        if not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    assert "preference-tokenize train failed" in log.read_text()


@pytest.mark.slow
def test_tiny_learns(tmp_path: Path, cache: Path):
    done = check(PROGRAM, *TINY, cwd=tmp_path, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    job = _job(tmp_path)
    rows = metrics(job / "run")
    train = [row for row in rows if "train/loss" in row]
    held_out = [row for row in rows if "validation-default/accuracy" in row]
    assert [row["step"] for row in train] == list(range(1, 11))
    assert [row["step"] for row in held_out] == [0, 5, 10]
    assert train[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert held_out[0]["validation-default/accuracy"] <= 0.6
    assert held_out[-1]["validation-default/accuracy"] > 0.8
    assert (job / "checkpoint_megatron" / "latest_checkpointed_iteration.txt").is_file()
    table = done.stdout.decode()
    assert f"checkpoint  {(job / 'checkpoint_megatron').relative_to(tmp_path)}" in table
    assert [path.name for path in (cache / "nemotron-dpo").glob("*.partial")] == []


@pytest.mark.slow
@pytest.mark.multiprocess
def test_printed_plan_can_be_pasted(tmp_path: Path, cache: Path):
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    small = ["dpo.max_num_steps=2", "data.validation=null", "data.train.limit=32", "cluster.gpus_per_node=2"]
    check(PROGRAM, *TINY, *small, cwd=tmp_path / ".", env=env)
    first = _job(tmp_path)
    shown = check(PROGRAM, *TINY, *small, "-d", cwd=tmp_path, env=env).stdout.decode()
    script = shown[shown.index("\n# job folder") :]
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pasted = next(job for job in first.parent.iterdir() if job != first)
    losses = [[row["train/loss"] for row in metrics(job / "run")] for job in (first, pasted)]
    assert losses[0] == losses[1]

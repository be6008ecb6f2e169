"""nemotron-steps run: the record it leaves, failures, what is not done twice, and the whole tiny run."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import orjson
import psutil
import pytest
import yaml

from nemotron_dpo.config import load_run
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.streams import open_reader
from support.forking_python import forks_first
from support.programs import check, command, error_line, losses, metrics, run, run_with_small_files

PROGRAM = "nemotron-steps"
DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data"
SECRET = "hf_" + "abcdefghij" * 3
TINY = ["run", "rl/nemo_rl/dpo", "-c", "tiny"]


@pytest.fixture
def broken_data(tmp_path: Path) -> Path:
    """Preference rows of which the second is not JSON: the first stage fails on it, before torch is needed."""
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    return path


def _job(folder: Path) -> Path:
    (job,) = (folder / ".nemotron" / "jobs").iterdir()
    return job


def test_a_record_that_has_no_room_is_named(tmp_path: Path):
    done = run_with_small_files(3072, PROGRAM, *TINY, cwd=tmp_path)
    assert error_line(done, PROGRAM) == f"{_job(tmp_path).relative_to(tmp_path)}/train.yaml: file too large"
    assert done.returncode == 1


@pytest.mark.slow
def test_failing_stage_stops_the_run_and_leaves_its_record(tmp_path: Path, policy: Path, broken_data: Path):
    arguments = [f"data.train.prompt_file={broken_data}", "data.validation=null", f"policy.model_name={policy}"]
    secret = [f"policy.env_vars.WANDB_API_KEY={SECRET}", f"logger.wandb.name={SECRET}"]
    done = run(PROGRAM, *TINY, *arguments, *secret, cwd=tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert f"preference-tokenize: error: {broken_data}:2: " in said
    job = _job(tmp_path)
    at = job.relative_to(tmp_path)
    last = f"failed (exit 1); it said why above and in {at}/logs/preference-tokenize-train.log; the job is in {at}"
    assert said.splitlines()[-1] == f"nemotron-steps: error: preference-tokenize train {last}"
    assert sorted(path.name for path in job.iterdir()) == ["job.yaml", "logs", "state.json", "train.yaml"]
    state = json.loads((job / "state.json").read_text())
    assert (state["status"], state["exit"], state["stage"]) == ("failed", 1, "preference-tokenize train")
    assert f"{broken_data}:2: " in (job / "logs" / "preference-tokenize-train.log").read_text()
    record = yaml.safe_load((job / "job.yaml").read_text())
    assert record["step"] == "rl/nemo_rl/dpo"
    assert record["config"]["overrides"][0] == arguments[0]
    assert [stage["name"] for stage in record["stages"]] == [
        "preference-tokenize train", "ref-logprobs train", "dpo-train", "ckpt-export",
    ]  # fmt: skip
    assert load_run(job / "train.yaml", [])[1] == []
    everything = done.stdout.decode() + said + "".join(path.read_text() for path in job.rglob("*.*"))
    assert SECRET not in everything


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_env_toml_is_written_once_with_what_is_set(tmp_path: Path):
    run_it = ["run", "env/env_toml", "-c", "slurm", "sections.slurm_base.account=me", "sections.slurm_base.nodes=3"]
    check(PROGRAM, *run_it, cwd=tmp_path)
    written = tmp_path / "env.slurm.toml"
    profile = tomllib.loads(written.read_text())["slurm_base"]
    assert (profile["executor"], profile["account"], profile["nodes"]) == ("slurm", "me", 3)
    again = run(PROGRAM, *run_it, cwd=tmp_path)
    line = "env.slurm.toml: exists already: force=true replaces it, output_path=FILE writes another"
    assert (again.returncode, error_line(again, PROGRAM)) == (1, line)
    check(PROGRAM, "run", "env/env_toml", "--force", cwd=tmp_path)
    assert tomllib.loads(written.read_text())["slurm_base"]["account"] == "my_account"
    env = {**os.environ, "NEMOTRON_ENV_FILE": str(written)}
    assert "slurm_rl_nemo_rl_dpo" in run(PROGRAM, "run", "dpo", "-r", "none", cwd=tmp_path, env=env).stderr.decode()


def test_rows_are_checked_and_counted(tmp_path: Path, policy: Path):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "chosen": "good", "rejected": "bad"}, {"prompt": "a", "chosen": "x", "rejected": "x"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    shown = check(
        PROGRAM, "run", "preference_tokenize", f"data.path={data}", f"tokenizer={policy}", cwd=tmp_path
    ).stdout.decode()
    assert "rows: 3\npairs: 1\n" in shown
    assert "preference_audit: " in shown
    rejects = (_job(tmp_path) / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [2, 3]


def test_a_job_is_done_where_nobody_reads_its_report(tmp_path: Path, policy: Path):
    """`nemotron-steps run ... | head`: the stages are over when the report finds no reader."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    reader, writer = os.pipe()
    os.close(reader)
    argv = command(PROGRAM, "run", "preference_tokenize", f"data.path={data}", f"tokenizer={policy}")
    done = subprocess.run(argv, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE, done.stderr.decode()
    state = json.loads((_job(tmp_path) / "state.json").read_text())
    assert (state["status"], state["reason"], state["exit"]) == ("done", None, 0)


@pytest.mark.slow
def test_only_what_changed_is_done_again(tmp_path: Path, policy: Path):
    arguments = [
        *TINY,
        f"policy.model_name={policy}",
        "data.validation=null",
        "data.train.limit=4",
        "--to",
        "preference-tokenize",
    ]
    first = check(PROGRAM, *arguments, cwd=tmp_path)
    assert b"stopped after preference-tokenize train: " in first.stdout
    skipped = b"nemotron-steps: preference-tokenize train: up to date, taken from .nemotron/cache/"
    again = check(PROGRAM, *arguments, "policy.optimizer.lr=1", "dpo.reference_policy_kl_penalty=0.3", cwd=tmp_path)
    assert skipped in again.stderr
    for changed in (["data.train.limit=3"], ["policy.max_total_sequence_length=64"], ["--force"]):
        assert skipped not in check(PROGRAM, *arguments, *changed, cwd=tmp_path).stderr
    before = sorted(tmp_path.rglob("*"))
    planned = check(PROGRAM, *arguments, "-d", cwd=tmp_path).stdout.decode()
    assert "\n# preference-tokenize train: up to date, taken from where it is\n# " in planned
    assert sorted(tmp_path.rglob("*")) == before
    script = planned[planned.index("\n# job folder") :]
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    jobs = sorted(tmp_path.glob(".nemotron/jobs/*/train.pairs.arrow"))
    assert len(jobs) == 6
    assert jobs[0].read_bytes() == jobs[-1].read_bytes()


@pytest.mark.slow
def test_data_sets_with_weights_are_one_set(tmp_path: Path, policy: Path):
    """Three rows twice and one of two; another weight tokenizes nothing anew."""
    for name, numbers in (("a", range(3)), ("b", range(3, 5))):
        fixed = {"chosen": "yes", "rejected": "no", "score_rejected": 0.5}
        rows = [orjson.dumps({"prompt": f"q {n}", "score_chosen": n, **fixed}) for n in numbers]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(rows))
    tuning = ["data.validation=null", "dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "--to", "mixture"]
    arguments = [*TINY, f"policy.model_name={policy}", *tuning]

    def mixed(second: str) -> tuple[str, list[dict]]:
        done = check(PROGRAM, *arguments, f"data.train=[{{path: a.jsonl, weight: 2}}, {second}]", cwd=tmp_path)
        newest = max(tmp_path.glob(".nemotron/jobs/*/train.pairs.arrow"), key=lambda path: path.stat().st_mtime_ns)
        with open_reader(newest, "tokenized_pairs") as reader:
            return done.stderr.decode(), reader.read_all().to_pylist()

    said, rows = mixed("{path: b.jsonl, weight: 0.5, source_name: half}")
    assert "mixture: 7 pairs written: 6 (85.7%) of a.jsonl, 2 x 3; 1 (14.3%) of half, 0.5 x 2" in said
    assert [(row["source"], row["source_line"], row["chosen_reward"]) for row in rows[:6]] == [
        ("a.jsonl", line + 1, line) for line in (0, 1, 2, 0, 1, 2)
    ]
    assert (rows[6]["source"], rows[6]["chosen_reward"] - rows[6]["source_line"]) == ("half", 2)
    said, rows = mixed("{path: b.jsonl, source_name: half}")
    assert len(rows) == 8
    for part in (1, 2):
        assert f"preference-tokenize train.{part}: up to date" in said


def test_from_needs_what_comes_before(tmp_path: Path, policy: Path):
    done = run(PROGRAM, *TINY, f"policy.model_name={policy}", "--from", "dpo-train", cwd=tmp_path)
    line = "preference-tokenize train: what it makes is not there: run without --from, or --from preference-tokenize"
    assert (done.returncode, error_line(done, PROGRAM)) == (1, line)
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_do_not_exist_are_refused_before_anything_runs(tmp_path: Path, policy: Path):
    """Named by the environment, which a local run hands on, or by a profile, wherever it leads."""
    slurm = 'executor = "slurm"\nremote_job_dir = "/jobs"\nworkspace = "/there"\n'
    for profile, environ in (("", {"NEMOTRON_DPO_KERNELS": "foo"}), ('executor = "local"\n', {}), (slurm, {})):
        (tmp_path / "env.toml").write_text(f'[p]\n{profile}env_vars = {{NEMOTRON_DPO_KERNELS = "foo"}}\n')
        options = ["-r", "p"] if profile else []
        argv = [*TINY, f"policy.model_name={policy}", *options, "--dry-run"]
        done = run(PROGRAM, *argv, cwd=tmp_path, env={**os.environ, **environ})
        line = "NEMOTRON_DPO_KERNELS is 'foo': set it to torch, c, gpu or auto"
        assert (done.returncode, error_line(done, PROGRAM)) == (2, line), profile
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]


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
    assert re.search(r"^loss +0\.6931 +0\.4202$", table, re.M)  # as the README says
    assert f"checkpoint  {(job / 'checkpoint_megatron').relative_to(tmp_path)}" in table
    assert [path.name for path in (cache / "nemotron-dpo").glob("*.partial")] == []
    _nothing_is_done_twice(tmp_path, cache, table)
    _export_alone_is_made_again(tmp_path, cache)
    _held_out_scores_are_those_of_training(tmp_path, cache, job, held_out[-1])


def _nothing_is_done_twice(folder: Path, cache: Path, table: str) -> None:
    again = check(PROGRAM, *TINY, cwd=folder, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    said = again.stderr.decode().splitlines()
    assert [line.partition(" taken")[0] for line in said[:-1]] == [
        f"nemotron-steps: {stage}: up to date,"
        for stage in ("preference-tokenize train", "preference-tokenize validation-default", "ref-logprobs train",
                      "ref-logprobs validation-default", "dpo-train", "ckpt-export")
    ]  # fmt: skip
    assert _without_job(again.stdout.decode()) == _without_job(table)


def _without_job(table: str) -> str:
    return re.sub(r"\d{8}-\d{6}-rl-nemo_rl-dpo", "JOB", table)


def _export_alone_is_made_again(folder: Path, cache: Path) -> None:
    before = set((folder / ".nemotron" / "jobs").iterdir())
    again = check(PROGRAM, *TINY, "--from", "ckpt-export", cwd=folder, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    (job,) = set((folder / ".nemotron" / "jobs").iterdir()) - before
    said = again.stderr.decode().splitlines()
    assert "dpo-train: up to date" in said[-2]
    assert said[-1].startswith("ckpt-export: ")
    assert (job / "run" / "metrics.jsonl").is_file()
    assert (job / "checkpoint_megatron" / "latest_checkpointed_iteration.txt").is_file()


def _held_out_scores_are_those_of_training(folder: Path, cache: Path, job: Path, last: dict) -> None:
    (reference,) = (cache / "nemotron-dpo").glob("tiny-sft-*/checkpoint_megatron")
    arguments = [f"data.path={DATA / 'validation.jsonl'}", "precision=float32", f"reference.model_name={reference}"]
    check(PROGRAM, "run", "eval/preference_score", *arguments, f"policy.model_name={job / 'checkpoint_megatron'}", cwd=folder)
    (scores,) = folder.glob(".nemotron/jobs/*-eval-preference_score/scores.json")
    report = json.loads(scores.read_text())
    assert report["pairs"] == 64
    assert report["accuracy"] == last["validation-default/accuracy"]
    assert report["loss"] == pytest.approx(last["validation-default/loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_printed_plan_can_be_pasted(tmp_path: Path, cache: Path):
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    small = ["dpo.max_num_steps=2", "data.validation=null", "data.train.limit=32", "cluster.gpus_per_node=2"]
    check(PROGRAM, *TINY, *small, cwd=tmp_path / ".", env=env)
    first = _job(tmp_path)
    shown = check(PROGRAM, *TINY, *small, "-d", cwd=tmp_path, env=env).stdout.decode()
    script = shown[shown.index("\n# job folder") :]
    with forks_first(tmp_path / "forks") as find:
        lines = f"{find}\n{script}"
        done = subprocess.run(["bash", "-euc", lines], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pasted = next(job for job in first.parent.iterdir() if job != first)
    assert losses(first / "run") == losses(pasted / "run")

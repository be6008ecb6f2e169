"""nemotron-steps as a program: the documented commands, the record it leaves, failures, and the whole tiny run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import tomllib
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
    (["list", "--category", "convert"], "convert/hf_to_megatron"),
    (["show", "dpo"], "dpo.reference_policy_kl_penalty"),
    (["show", "dpo"], "  convert/hf_to_megatron  checkpoint_megatron\n"),
    (["show", "dpo"], "  eval/preference_score   checkpoint_megatron\n"),
    (["help", "dpo"], "rl/nemo_rl/dpo: Direct preference optimization\n"),
    (["help", "run"], "Usage: nemotron-steps run [OPTIONS] STEP [KEY.PATH=VALUE]..."),
    (["help"], "Usage: nemotron-steps [OPTIONS] COMMAND [ARGS]..."),
]


@pytest.mark.parametrize(("arguments", "line"), LISTED)
def test_list_and_show(arguments: list[str], line: str):
    assert line in check(PROGRAM, *arguments).stdout.decode()


@pytest.mark.parametrize("option", ["--category", "--tag", "--consumes", "--produces"])
def test_filters_leave_out(option: str):
    assert json.loads(check(PROGRAM, "list", option, "none", "--json").stdout) == []


def test_json():
    listed = {step["id"]: step for step in json.loads(check(PROGRAM, "list", "--json").stdout)}
    dpo = listed["rl/nemo_rl/dpo"]
    assert dpo == json.loads(check(PROGRAM, "show", "dpo", "--json").stdout)
    assert [item["type"] for item in dpo["produces"]] == ["checkpoint_megatron"]
    assert {"step": "convert/megatron_to_hf", "artifact": "checkpoint_megatron"} in dpo["after"]
    assert sorted(listed) == [
        "convert/hf_to_megatron", "convert/megatron_to_hf", "data_prep/preference_tokenize",
        "env/env_toml", "eval/preference_score", "rl/nemo_rl/dpo",
    ]  # fmt: skip


def test_help_of_a_step_is_show():
    assert check(PROGRAM, "help", "rl/nemo_rl/dpo").stdout == check(PROGRAM, "show", "rl/nemo_rl/dpo").stdout


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


def test_overrides_before_and_after_options_with_the_origin_of_every_value(tmp_path: Path):
    (tmp_path / "env.toml").write_text('[two]\nexecutor = "local"\nnproc_per_node = 2\n')
    arguments = ["run", "dpo", "dpo.seed=3", "-c", "tiny", "-r", "two", "dpo.val_period=4", "-d"]
    shown = check(PROGRAM, *arguments, cwd=tmp_path).stdout.decode()
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    tiny = (configs_root() / "rl" / "nemo_rl" / "dpo" / "tiny.yaml").read_text().splitlines()
    for line in (
        "dpo.seed 3 # dpo.seed=3",
        "dpo.val_period 4 # dpo.val_period=4",
        f"dpo.max_num_steps 10 # tiny.yaml:{tiny.index('  max_num_steps: 10') + 1}",
        "dpo.preference_loss_weight 1.0 # default.yaml:14",
        "cluster.gpus_per_node 2 # profile two",
        "cluster.num_nodes 1",
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
    (["run", "dpo", "policy.megatron_cfg.tensor_model_parallel_size=2"], 1, "1 processes (cluster.*) do not divide into tensor x pipeline x context parallel groups of 2: make cluster.gpus_per_node x num_nodes a multiple of 2"),  # noqa: E501
    (["run", "dpo"], 1, "data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL"),
    (["run", "dpo", "data.train.path=none.jsonl"], 1, "none.jsonl: no such file: it is the data of train"),
    (["run", "dpo", "-d", "--from", "train"], 2, "--from train: no such stage: did you mean dpo-train?"),
    (["run", "dpo", "-d", "--to", "x"], 2, "--to x: no such stage: the stages are preference-tokenize train, ref-logprobs train, dpo-train, ckpt-export"),  # noqa: E501
    (["run", "dpo", "-d", "--from", "dpo-train", "--to", "ref-logprobs"], 2, "--from dpo-train comes after --to ref-logprobs"),
    (["run", "hf_to_megatron"], 1, "hf_model_id is not set: give hf_model_id=ID_OR_FOLDER"),
    (["run", "megatron_to_hf", "mgatron_path=x"], 1, 'mgatron_path=x: "mgatron_path" is no known key: did you mean megatron_path?'),  # noqa: E501
    (["run", "preference_tokenize", "tokenizer=t", "data.path=none"], 1, "none: no such file: it is data.path"),
    (["run", "dpo", f"dpo.seed={SECRET}"], 1, "dpo.seed=***: \"dpo.seed\" is '***' where a whole number is due"),
    (["run", "dpo", "-r", "x"], 1, "no env.toml from here up to the folder with pyproject.toml: write one, or set NEMOTRON_ENV_FILE"),  # noqa: E501
    (["run"], 2, "Missing argument 'STEP': see 'nemotron-steps --help'"),
    (["walk"], 2, "No such command 'walk': see 'nemotron-steps --help'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "line"), FAILURES)
def test_mistakes_are_one_clear_line(tmp_path: Path, arguments: list[str], status: int, line: str):
    done = run(PROGRAM, *arguments, cwd=tmp_path)
    assert (done.returncode, error_line(done, PROGRAM)) == (status, line)
    assert list(tmp_path.iterdir()) == []


CLOUDS = {
    "lepton": """executor = "lepton"
node_group = "group"
resource_shape = "gpu.8xh100-sxm"
nemo_run_dir = "/mnt/shared/nemo-run"
mounts = [{ path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }]
""",
    "dgxcloud": """executor = "dgxcloud"
base_url = "https://runai.example.com/api/v1"
kube_apiserver_url = "https://runai.example.com/k8s"
client_id = "client"
client_secret = "planted-by-the-test-0123456789"
project_name = "project"
pvc_nemo_run_dir = "/workspace/nemo-run"
pvcs = [{ name = "storage", path = "/workspace", existingPvc = true, claimName = "claim" }]
""",
}


@pytest.mark.parametrize("executor", CLOUDS)
def test_documented_command_of_a_cloud_dry_run(tmp_path: Path, executor: str):
    """Without NeMo-Run: only submitting needs it."""
    common = (
        f'container_image = "nvcr.io/nvidia/nemo:25.11"\nnodes = 2\ngpus_per_node = 8\nenv_vars = {{ API_KEY = "{SECRET}" }}\n'
    )
    (tmp_path / "env.toml").write_text(f"[lepton_rl_nemo_rl_dpo]\n{CLOUDS[executor]}{common}")
    given = ["dpo.reference_policy_kl_penalty=0.2", "dpo.max_num_steps=1000"]
    done = check(PROGRAM, "run", "rl/nemo_rl/dpo", "-c", "default", "-r", "lepton_rl_nemo_rl_dpo", *given, "-d", cwd=tmp_path)
    text = done.stdout.decode()
    assert done.stderr == b""
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]
    assert "  API_KEY: '***'\n" in text
    assert SECRET not in text
    assert "planted" not in text
    assert "max_num_steps: 1000\n" in text
    assert "nodes: 2\ngpus_per_node: 8\nnprocs_per_node: 8\n" in text
    root = "/mnt/shared" if executor == "lepton" else "/workspace"
    assert f'\nstage 3 dpo-train 2 torchrun "${{rendezvous[@]}}" dpo-train {root}/nemo-run/dpo-' in text


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
    at = job.relative_to(tmp_path)
    last = f"failed (exit 1); it said why above and in {at}/logs/preference-tokenize-train.log; the job is in {at}"
    assert said.splitlines()[-1] == f"nemotron-steps: error: preference-tokenize train {last}"
    assert sorted(path.name for path in job.iterdir()) == ["job.yaml", "logs", "train.yaml"]
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


COMPLETED = [
    ("nemotron-steps run rl/", 2, ["rl/nemo_rl/dpo"]),
    ("nemotron-steps show conv", 2, ["convert/hf_to_megatron", "convert/megatron_to_hf"]),
    ("nemotron-steps run dpo -c ", 4, ["default", "smollm2", "tiny"]),
    ("nemotron-steps run -r tw", 3, ["two"]),
    ("nemotron-steps run dpo -b ", 4, ["two", "three"]),
    ("nemotron-steps run dpo --from ref", 4, ["ref-logprobs"]),
    ("nemotron-steps run dpo dpo.ref", 3, ["dpo.reference_policy_kl_penalty="]),
    ("nemotron-steps run nothing -c ", 4, []),
]


@pytest.mark.parametrize(("words", "at", "offered"), COMPLETED)
def test_completion(tmp_path: Path, words: str, at: int, offered: list[str]):
    (tmp_path / "env.toml").write_text('[wandb]\nentity = "me"\n[two]\nexecutor = "local"\n[three]\nextends = "two"\n')
    asked = {"_NEMOTRON_STEPS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    answer = check(PROGRAM, cwd=tmp_path, env={**os.environ, **asked}).stdout.decode()
    assert [line.removeprefix("plain,") for line in answer.split()] == offered


def test_completion_in_a_real_bash():
    programs = Path(sys.executable).parent
    script = f"""
        PATH={programs}:$PATH
        eval "$(_NEMOTRON_STEPS_COMPLETE=bash_source nemotron-steps)"
        COMP_WORDS=(nemotron-steps run dpo -c t) COMP_CWORD=4
        _nemotron_steps_completion nemotron-steps t -c
        echo "${{COMPREPLY[@]}}"
    """
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == "tiny\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_of_every_shell(shell: str):
    script = check(PROGRAM, env={**os.environ, "_NEMOTRON_STEPS_COMPLETE": f"{shell}_source"}).stdout.decode()
    assert f"{shell}_complete" in script
    assert "nemotron-steps" in script


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


def test_from_needs_what_comes_before(tmp_path: Path, policy: Path):
    done = run(PROGRAM, *TINY, f"policy.model_name={policy}", "--from", "dpo-train", cwd=tmp_path)
    line = "preference-tokenize train: what it makes is not there: run without --from, or --from preference-tokenize"
    assert (done.returncode, error_line(done, PROGRAM)) == (1, line)
    assert list(tmp_path.iterdir()) == []


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
    assert again.stdout.decode().splitlines()[:-1] == table.splitlines()[:-1]


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
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pasted = next(job for job in first.parent.iterdir() if job != first)
    losses = [[row["train/loss"] for row in metrics(job / "run")] for job in (first, pasted)]
    assert losses[0] == losses[1]

"""nemotron-steps run as a compiler: what a dry run shows, from where, and which mistakes are refused in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_dpo.config import ClusterConfig, RunConfig, load_run
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.executors.local.machine import too_large
from support.programs import check, error_line, run

PROGRAM = "nemotron-steps"
SECRET = "hf_" + "abcdefghij" * 3

DRY = [
    ["run", "rl/nemo_rl/dpo", "-c", "tiny", "--dry-run"],
    ["run", "rl/nemo_rl/dpo", "-c", "default", "--dry-run"],
    ["run", "dpo", "dpo.seed=3", "-d"],
    ["run", "dpo", "dpo.max_num_steps=1000", "-c", "default", "policy.optimizer.lr=1.0e-6", "-d"],
]


@pytest.mark.parametrize("arguments", DRY)
@pytest.mark.slow
def test_dry_run_touches_nothing(tmp_path: Path, arguments: list[str]):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    shown = check(PROGRAM, *arguments, cwd=tmp_path, env=env).stdout.decode()
    assert "# dpo-train\n" in shown
    assert shown.index("policy.optimizer.lr") < shown.index("\n# estimate\n") < shown.index("\n# job folder\n")
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
        "dpo.preference_loss_weight 1.0 # default.yaml:15",
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


def test_dry_run_refuses_what_training_would(tmp_path: Path):
    for override, words in (
        ("checkpointing.metric_name=val:validation-default_acuracy", "did you mean val:validation-default_accuracy?"),
        ("checkpointing.checkpoint_must_save_by=10:00:00:00", "is a number to YAML (2160000) where text is due: quote it"),
        ("policy.optimizer.lr=.inf", "is inf where a finite number is due"),
    ):
        done = run(PROGRAM, "run", "dpo", "-c", "tiny", "-d", override, cwd=tmp_path)
        assert done.returncode == 1
        assert error_line(done, PROGRAM).startswith(f"{override}: ")
        assert words in done.stderr.decode()
    said = check(PROGRAM, "run", "dpo", "-c", "tiny", "-d", "dpo.reference_policy_kl_penalty=0", cwd=tmp_path).stderr.decode()
    assert said.count("warning") == 1
    assert "ln 2 whatever the policy does" in said


@pytest.mark.parametrize("name", ["default", "tiny", "smollm2", "tiny_sft/sft"])
def test_shipped_configs_are_clean(name: str):
    assert load_run(configs_root() / "rl" / "nemo_rl" / "dpo" / f"{name}.yaml", [])[1] == []


NO_ENV_TOML = (
    "no env.toml from here up to the folder with pyproject.toml: `nemotron-steps run env/env_toml -c slurm` writes one to fill "
    "in; NEMOTRON_ENV_FILE names one elsewhere"
)
FAILURES = [
    (["run", "dpo", "-r", "a", "-b", "b"], 2, "-r follows a run and -b leaves it alone: give one of them"),
    (["run", "dop"], 1, "dop: no such step: did you mean rl/nemo_rl/dpo? `nemotron-steps list` shows all"),
    (["run", "dpo", "-c", "tinny"], 1, "tinny: no such config: did you mean tiny? rl/nemo_rl/dpo has default, ipo, mpo, orpo, simpo, smollm2, tiny, tulu3; or give a path"),
    (["run", "dpo", "dpo.sed=1"], 1, 'dpo.sed=1: "dpo.sed" is no known key: did you mean dpo.seed?'),
    (["run", "dpo", "cluster.gpus_per_node=3"], 1, '"policy.train_global_batch_size" 32 does not divide over 3 data-parallel ranks: make it a multiple of 3'),
    (["run", "dpo", "policy.megatron_cfg.tensor_model_parallel_size=2"], 1, "1 processes (cluster.*) do not divide into tensor x pipeline x context parallel groups of 2: make cluster.gpus_per_node x num_nodes a multiple of 2"),
    (["run", "dpo"], 1, "data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL"),
    (["run", "dpo", "policy.model_name=''"], 1, 'policy.model_name=\'\': "policy.model_name" is empty: name one; is an environment variable of it set to nothing?'),
    (["run", "dpo", "policy.model_name=${oc.env:NOPE}"], 1, "policy.model_name=${oc.env:NOPE}: \"policy.model_name\" Environment variable 'NOPE' not found: set it, or give another value after it: ${oc.env:NAME,value}"),
    (["run", "dpo", "data.train.path=none.jsonl"], 1, "none.jsonl: no such file: it is the data of train"),
    (["run", "dpo", "-d", "--from", "train"], 2, "--from train: no such stage: did you mean dpo-train?"),
    (["run", "dpo", "-d", "--to", "x"], 2, "--to x: no such stage: the stages are preference-tokenize train, ref-logprobs train, dpo-train, ckpt-export"),
    (["run", "dpo", "-d", "--from", "dpo-train", "--to", "ref-logprobs"], 2, "--from dpo-train comes after --to ref-logprobs"),
    (["run", "hf_to_megatron"], 1, "hf_model_id is not set: give hf_model_id=ID_OR_FOLDER"),
    (["run", "megatron_to_hf", "mgatron_path=x"], 1, 'mgatron_path=x: "mgatron_path" is no known key: did you mean megatron_path?'),
    (["run", "preference_tokenize", "tokenizer=t", "data.path=none"], 1, "none: no such file: it is data.path"),
    (["run", "dpo", f"dpo.seed={SECRET}"], 1, "dpo.seed=***: \"dpo.seed\" is '***' where a whole number is due"),
    (["run", "dpo", "-r", "x"], 1, NO_ENV_TOML),
    (["show", "dpo", "--keys", "*nope"], 1, "--keys *nope: no key is like that: `show rl/nemo_rl/dpo --keys` shows all"),
    (["run"], 2, "Missing argument 'STEP': see 'nemotron-steps run --help'"),
    (["run", "dpo", "-c", ""], 1, "-c: no such config: rl/nemo_rl/dpo has default, ipo, mpo, orpo, simpo, smollm2, tiny, tulu3; or give a path"),
    (["run", "dpo", "-d", "--to", ""], 2, "--to (empty): no such stage: the stages are preference-tokenize train, ref-logprobs train, dpo-train, ckpt-export"),
    (["run", "dpo", "-r", ""], 1, NO_ENV_TOML),
    (["run", ""], 1, "STEP: no such step: `nemotron-steps list` shows all"),
    (["run", "dpo", "run.env.acount=x"], 1, 'run.env.acount=x: "run.env.acount" is no known key: did you mean account?'),
    (["run", "dpo", "run.env.env_vars=secret"], 1, 'run.env.env_vars=***: "run.env.env_vars" is no table'),
    (["run", "dpo", "run.env.nodes=2", "cluster.num_nodes=3"], 1, 'run.env.nodes=2: "run.env.nodes" is 2, and cluster.num_nodes is 3: set one of them'),
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


COMMON = f"""container_image = "nvcr.io/me/nemotron-dpo:25.11"
nodes = 2
gpus_per_node = 8
nprocs_per_node = 8
env_vars = {{ API_KEY = "{SECRET}" }}
"""
NO_DATA = "data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL"


@pytest.mark.parametrize("executor", CLOUDS)
def test_documented_command_of_a_cloud_dry_run(tmp_path: Path, executor: str):
    """Without NeMo-Run: only submitting needs it."""
    (tmp_path / "env.toml").write_text(f"[lepton_rl_nemo_rl_dpo]\n{CLOUDS[executor]}{COMMON}")
    given = ["dpo.reference_policy_kl_penalty=0.2", "dpo.max_num_steps=1000"]
    done = check(PROGRAM, "run", "rl/nemo_rl/dpo", "-c", "default", "-r", "lepton_rl_nemo_rl_dpo", *given, "-d", cwd=tmp_path)
    text = done.stdout.decode()
    assert done.stderr.decode() == f"nemotron-steps: warning: {NO_DATA}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]
    assert "  API_KEY: '***'\n" in text
    assert SECRET not in text
    assert "planted" not in text
    assert "max_num_steps: 1000\n" in text
    assert "nodes: 2\ngpus_per_node: 8\nnprocs_per_node: 8\n" in text
    root = "/mnt/shared" if executor == "lepton" else "/workspace"
    assert f'\nstage 3 dpo-train 2 dpo-torchrun "${{rendezvous[@]}}" dpo-train {root}/nemo-run/dpo-' in text


@pytest.mark.parametrize("executor", CLOUDS)
def test_a_config_wins_over_a_cloud_profile_where_it_says_how_large(tmp_path: Path, executor: str):
    (tmp_path / "env.toml").write_text(f"[far]\n{CLOUDS[executor]}{COMMON}")
    own = "run:\n  env: {nodes: 4, gpus_per_node: 2, container_image: own, env_vars: {C: '3'}, partition: p}\n"
    (tmp_path / "own.yaml").write_text(f"data: {{train: {{path: /there/rows.jsonl}}}}\n{own}")
    done = check(PROGRAM, "run", "dpo", "-c", "own.yaml", "-b", "far", "-d", cwd=tmp_path)
    text = done.stdout.decode()
    assert "\nnodes: 4\ngpus_per_node: 2\nnprocs_per_node: 2\n" in text
    assert "\ncontainer_image: own\n" in text
    assert "\n  C: '3'\n" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert {"cluster.num_nodes 4 # own.yaml:3", "cluster.gpus_per_node 2 # own.yaml:3"} <= set(lines)
    place = {"lepton": "Lepton", "dgxcloud": "DGX Cloud"}[executor]
    idle = f"nemotron-steps: warning: {tmp_path / 'env.toml'}: without effect on {place}: partition\n"
    assert done.stderr.decode().endswith(idle)


@pytest.mark.parametrize("executor", CLOUDS)
def test_what_a_cloud_run_lacks_is_refused_once(tmp_path: Path, executor: str):
    (tmp_path / "env.toml").write_text(f'[far]\n{CLOUDS[executor]}{COMMON}[odd]\nextends = "far"\nshared_mem_size = 1\n')
    odd = f'{tmp_path / "env.toml"}: "shared_mem_size" profile odd: is no known key: did you mean shared_memory_size?'
    for profile, line in (("far", NO_DATA), ("odd", odd)):
        done = run(PROGRAM, "run", "dpo", "-b", profile, cwd=tmp_path)
        assert (done.returncode, done.stderr.decode()) == (1, f"nemotron-steps: error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]


def test_tokens_that_pass_through_are_named_and_slips_refused(tmp_path: Path):
    words = ["--fast", "--mode", "word", "--cluster={gpus_per_node: 2}"]
    done = check(PROGRAM, "run", "dpo", "-d", *words, cwd=tmp_path)
    for token in ("--fast", "--mode word"):
        assert f"nemotron-steps: warning: {token}: names no section of the config and is ignored\n" in done.stderr.decode()
    assert "--nproc-per-node 2" in done.stdout.decode().replace("\\\n    ", "")
    slip = run(PROGRAM, "run", "dpo", "-d", "dpo.max_num_steps", "2", cwd=tmp_path)
    line = "dpo.max_num_steps: is no KEY.PATH=VALUE: did you mean dpo.max_num_steps=2?"
    assert (slip.returncode, error_line(slip, PROGRAM), slip.stdout) == (2, line, b"")


PLACED = """
[here]
executor = "slurm"
account = "theirs"
nodes = 4
gpus_per_node = 1
mounts = ["/b:/b"]
env_vars = {A = "theirs", B = "2", HF_TOKEN = "zq-planted"}
"""
OWN = """\
defaults: tiny.yaml
run:
  env:
    nodes: 2
    account: ours
    partition: short
    mem: ${oc.env:A_MEM}
    container_image: /images/own.sqsh
    mounts: ["/a:/a"]
    env_vars: {A: ours, C: "3"}
"""
SHOWN = [
    "cluster.num_nodes 2 # own.yaml:4",
    "cluster.gpus_per_node 1 # profile here",
    "run.env.nodes 2 # own.yaml:4",
    "run.env.account theirs # profile here",
    "run.env.partition long # run.env.partition=long",
    "run.env.container_image /images/own.sqsh # own.yaml:8",
    "run.env.mounts [/a:/a, /b:/b] # own.yaml:9",
    "run.env.env_vars.A theirs # profile here",
    "run.env.env_vars.B 5 # run.env.env_vars.B=***",
    "run.env.env_vars.C 3 # own.yaml:10",
    "run.env.mem 8G # $A_MEM (own.yaml:7)",
    "run.env.env_vars.HF_TOKEN *** # profile here",
]


def test_what_a_config_says_of_where_it_runs(tmp_path: Path):
    (tmp_path / "env.toml").write_text(PLACED)
    for source in ("tiny", "default"):
        text = (configs_root() / "rl" / "nemo_rl" / "dpo" / f"{source}.yaml").read_text()
        (tmp_path / f"{source}.yaml").write_text(text)
    (tmp_path / "own.yaml").write_text(OWN)
    overrides = ["run.env.partition=long", "run.env.env_vars.B=5"]
    env = {**os.environ, "A_MEM": "8G"}
    done = check(PROGRAM, "run", "dpo", "-c", "own.yaml", "-b", "here", "-d", *overrides, cwd=tmp_path, env=env)
    lines = [" ".join(line.split()) for line in done.stdout.decode().splitlines()]
    assert [line for line in SHOWN if line not in lines] == []
    for line in ("#SBATCH --nodes=2", "#SBATCH --account=theirs", "#SBATCH --partition=long", "export A=theirs", "export C=3"):
        assert line in lines
    assert "zq-planted" not in done.stdout.decode()


def test_run_env_without_a_profile_is_this_machine(tmp_path: Path):
    done = check(PROGRAM, "run", "dpo", "-d", "run.env.nproc_per_node=2", "run.env.partition=x", cwd=tmp_path)
    assert "--nproc-per-node 2" in done.stdout.decode().replace("\\\n    ", "")
    assert "without effect in a local run: partition\n" in done.stderr.decode()


FAR = '[far]\nexecutor = "slurm"\nhost = "login.invalid"\nremote_job_dir = "/jobs"\nworkspace = "/w"\n'


def test_data_on_a_cluster_must_be_named_and_is_not_looked_for(tmp_path: Path):
    (tmp_path / "env.toml").write_text(FAR)
    done = run(PROGRAM, "run", "dpo", "-b", "far", cwd=tmp_path)
    assert (done.returncode, error_line(done, PROGRAM)) == (1, NO_DATA)
    assert f"warning: {NO_DATA}\n" in check(PROGRAM, "run", "dpo", "-b", "far", "-d", cwd=tmp_path).stderr.decode()
    env = {**os.environ, "RL_TRAIN_DATA": "/there/rows.jsonl"}
    done = check(PROGRAM, "run", "dpo", "-b", "far", "-d", cwd=tmp_path, env=env)
    assert done.stderr == b""
    assert " preference-tokenize /there/rows.jsonl -o /jobs/" in done.stdout.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["env.toml"]


# In the words of NVIDIA's own configs of this step.
THEIRS = """\
run:
  env: {container_image: "nvcr.io/nvidia/nemo-rl:v0.6.0"}
dpo: {val_micro_batch_size: 1}
checkpointing: {checkpoint_dir: /nemo_run/dpo-checkpoints, save_optimizer: false}
data: {num_workers: 1, train: {split: train}, default: {prompt_file: null, system_prompt_file: null}}
logger: {log_dir: /nemo_run/dpo-logs, wandb: {project: "${oc.select:run.wandb.project,null}"}}
cluster: {gpus_per_node: 8, num_nodes: 2}
"""
SMALL = ["cluster.gpus_per_node=1", "cluster.num_nodes=1", "data.train.prompt_file=rows.jsonl"]


def test_keys_without_meaning_are_counted_and_on_demand_named(tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    (tmp_path / "rows.jsonl").touch()
    done = check(PROGRAM, "run", "dpo", "-c", "theirs.yaml", "-d", *SMALL, "run.wandb.entity=e", cwd=tmp_path)
    typed, _ = done.stderr.decode().splitlines()
    assert typed.startswith('nemotron-steps: warning: run.wandb.entity=e: "run.wandb" has no meaning here: it counts where')
    done = check(PROGRAM, "run", "dpo", "-c", "theirs.yaml", "-d", *SMALL, "run.wandb.project=p", cwd=tmp_path)
    (counted,) = done.stderr.decode().splitlines()  # their logger.wandb takes the project
    assert counted == "nemotron-steps: 6 keys of the config have no meaning here; --verbose says why"
    text = done.stdout.decode()
    (folder,) = [line.split()[1] for line in text.splitlines() if line.startswith("checkpointing.checkpoint_dir")]
    assert folder.startswith(".nemotron/jobs/")
    assert folder.endswith("/dpo-checkpoints")
    said = check(PROGRAM, "run", "dpo", "-c", "theirs.yaml", "-d", "-v", *SMALL, cwd=tmp_path).stderr.decode()
    assert 'theirs.yaml:3: "dpo.val_micro_batch_size" has no meaning here: it sizes batches by samples there; rows are' in said
    assert 'theirs.yaml:2: "run.env.container_image" has no meaning here: it is for a cluster, and this run is local' in said
    assert said.splitlines()[-1] == "nemotron-steps: 5 keys of the config have no meaning here"


def test_a_cluster_larger_than_this_machine(tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    (tmp_path / "rows.jsonl").touch()
    words = "cluster.* asks for 2 nodes of 8 processes, and this machine has "
    done = run(PROGRAM, "run", "dpo", "-c", "theirs.yaml", SMALL[-1], cwd=tmp_path)
    assert done.returncode == 1
    assert error_line(done, PROGRAM).startswith(words)
    assert "give cluster.num_nodes=1 cluster.gpus_per_node=" in error_line(done, PROGRAM)
    assert words in check(PROGRAM, "run", "dpo", "-c", "theirs.yaml", "-d", SMALL[-1], cwd=tmp_path).stderr.decode()
    for cluster, devices, line in (
        (ClusterConfig(2, 1), (2, "CPU core"), []),
        (ClusterConfig(8, 1), (4, "GPU"), ["1 node of 8 processes, and this machine has 4 GPUs: give cluster.num_nodes=1 cluster.gpus_per_node=4"]),
        (ClusterConfig(1, 2), (1, "GPU"), ["2 nodes of 1 process, and this machine has 1 GPU: give"]),
    ):  # fmt: skip
        found = too_large(RunConfig(cluster=cluster), devices)
        assert len(found) == len(line)
        assert all(words in said for words, said in zip(line, found, strict=True))


def test_more_processes_than_cores_are_meant_where_it_is_said_so(tmp_path: Path):
    (tmp_path / "rows.jsonl").touch()
    many = (
        "run",
        "dpo",
        "-d",
        "cluster.gpus_per_node=4096",
        "policy.train_global_batch_size=4096",
        "data.train.path=rows.jsonl",
    )
    assert b"cluster.* asks for 1 node of 4096 processes" in check(PROGRAM, *many, cwd=tmp_path).stderr
    assert b"cluster.*" not in check(PROGRAM, *many, "--oversubscribe", cwd=tmp_path).stderr


def test_what_would_be_warned_of_is_refused_where_that_is_asked_for(tmp_path: Path):
    (tmp_path / "rows.jsonl").touch()
    asked = ("run", "dpo", "-d", "dpo.max_num_steps=8", "data.train.path=rows.jsonl")
    warning = "is 50, and the run has no more than 8 steps: all of it is warm-up"
    assert warning in check(PROGRAM, *asked, cwd=tmp_path).stderr.decode()
    done = run(PROGRAM, *asked, "--strict", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert warning in error_line(done, PROGRAM)


def test_the_images_of_nvidia_are_said_to_lack_the_programs(tmp_path: Path):
    """Unless a workspace or the commands before the stages bring them."""
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    there = 'workspace = "/w"\n'
    cases = [
        ("", "", "theirs.yaml:2: nvcr.io/nvidia/nemo-rl:v0.6.0 lacks nemotron-dpo: install "),
        ("run.env.container_image=nvcr.io#nvidia/nemo:25.11", "", ": nvcr.io#nvidia/nemo:25.11 lacks nemotron-dpo: install "),
        ("run.env.container_image=nvcr.io/me/nemo:1", "", None),
        ("", 'startup_commands = "pip install nemotron-dpo"\n', None),
        ("", there, None),
    ]
    for image, own, said in cases:
        (tmp_path / "env.toml").write_text(FAR.replace(there, "") + own)
        words = ["run", "dpo", "-c", "theirs.yaml", "-b", "far", "-d", SMALL[-1], *([image] if image else [])]
        stderr = check(PROGRAM, *words, cwd=tmp_path).stderr.decode()
        assert said in stderr if said else "lacks nemotron-dpo" not in stderr, stderr


def test_defaults_of_ones_own_config_and_where_values_come_from(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("defaults: default\ndpo: {seed: 7}\n")
    shipped = configs_root() / "rl" / "nemo_rl" / "dpo" / "default.yaml"
    line = shipped.read_text().splitlines().index("  val_period: 50") + 1
    shown = check(PROGRAM, "run", "dpo", "-c", "own.yaml", "-d", cwd=tmp_path).stdout.decode()
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert {"dpo.seed 7 # own.yaml:2", f"dpo.val_period 50 # {shipped}:{line}"} <= set(lines)

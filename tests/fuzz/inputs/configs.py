"""Configs, ours and theirs, profiles and manifests."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import yaml

from fuzz.target import ROOT, STEP, Target, as_is, as_words, as_yaml, put


def _config_files() -> list[Any]:
    return [(STEP / f"{name}.yaml").read_bytes() for name in ("default", "tiny", "mpo", "simpo", "smollm2")]


def _config_trees() -> list[Any]:
    return [*_config_files(), *({**yaml.safe_load(one), "defaults": str(STEP / "default.yaml")} for one in _config_files()[1:])]


def _read_config(folder: Path, content: bytes) -> object:
    from nemotron_dpo.config import load_run
    from nemotron_dpo.config.dump import dump_run
    from nemotron_dpo.config.load import run_origins

    path = put(folder, "a.yaml", content)
    for name in ("default", "tiny"):
        shutil.copy(STEP / f"{name}.yaml", folder)
    run, _ = load_run(path, [], {"run": {"env": {"executor": "local"}}}, with_run_env=True, shipped=STEP)
    return dump_run(run), run_origins(path, [], {})


def _overrides() -> list[Any]:
    return [
        [
            "dpo.max_num_steps=3",
            "policy.optimizer.lr=1e-4",
            "policy.scheduler={name: cosine, warmup_steps: 3}",
            "data.train.prompt_file=a",
        ],
        [
            "dpo.preference_loss={dpo: 0.5, ipo: 0.5}",
            "data.validation={a: {prompt_file: x}, b: {prompt_file: y}}",
            "cluster.gpus_per_node=2",
        ],
        [
            "data.train=[{prompt_file: a, weight: 2}, {dataset_name: b/c, split: 'train[:1%]'}]",
            "run.env.nodes=2",
            "logger.wandb.name=x",
        ],
        [
            "policy.model_name=${oc.env:HOME}",
            "checkpointing.keep_top_k=3",
            "dpo.seed=7",
            "policy.megatron_cfg.peft={enabled: true, dim: 4}",
        ],
    ]


def _read_overrides(folder: Path, content: bytes) -> object:
    from nemotron_dpo.config import load_run
    from nemotron_dpo.config.dump import dump_run

    words = content.decode(errors="replace").split("\n")
    return dump_run(load_run(STEP / "default.yaml", words, {}, with_run_env=True, shipped=STEP)[0])


def _theirs() -> list[Any]:
    trl = {
        "model_name_or_path": "m",
        "dataset_name": "a/b",
        "dataset_train_split": "train",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
        "max_steps": 10,
        "learning_rate": 1e-6,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "bf16": True,
        "beta": 0.1,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1, 0.1],
        "eval_strategy": "steps",
        "eval_steps": 0.5,
        "save_steps": 2,
        "max_length": 512,
        "report_to": ["wandb"],
        "seed": 1,
    }
    axolotl = {
        "base_model": "m",
        "rl": "dpo",
        "datasets": [{"path": "a", "split": "train"}],
        "sequence_len": 512,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "learning_rate": 1e-5,
        "warmup_ratio": 0.1,
        "wandb_project": "p",
        "rl_beta": 0.2,
        "bf16": "auto",
        "evals_per_epoch": 2,
        "saves_per_epoch": 1,
    }
    factory = {
        "model_name_or_path": "m",
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "full",
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "template": "llama3",
        "cutoff_len": 512,
        "max_samples": 10,
        "per_device_train_batch_size": 1,
        "learning_rate": 5e-6,
        "num_train_epochs": 3.0,
        "warmup_ratio": 0.1,
        "bf16": True,
        "output_dir": "o",
        "report_to": "none",
    }
    return [trl, axolotl, factory]


def _read_theirs(folder: Path, content: bytes) -> object:
    from nemotron_dpo.config.theirs import Choices
    from nemotron_dpo.steps.from_trl import write_ours

    choices = Choices(processes=2, num_pairs=1000, train_data="rows.jsonl")
    return write_ours(put(folder, "theirs.yaml", content), folder / "ours.yaml", choices, force=True)


def _env_toml() -> list[Any]:
    return [
        b'[wandb]\nproject = "p"\n[base]\nexecutor = "slurm"\naccount = "a"\npartition = "gpu"\nnodes = 2\ntime = 04:00:00\n'
        b'mounts = ["/a:/a"]\nenv_vars = {A = "1", B = 2}\nsetup_commands = ["module load x"]\n[child]\nextends = "base"\n'
        b'nodes = 3\ngpus_per_node = 8\n[cloud]\nexecutor = "dgxcloud"\nbase_url = "https://x/api"\nproject_name = "p"\n',
        *(path.read_bytes() for path in sorted((ROOT / "configs" / "env" / "env_toml" / "templates").glob("*.toml"))),
    ]


def _read_env_toml(folder: Path, content: bytes) -> object:
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.steps.profiles.env_file import load_profile, profile_names
    from nemotron_dpo.steps.profiles.profile import CheckedProfile

    os.environ["NEMOTRON_ENV_FILE"] = str(put(folder, "env.toml", content))
    try:
        names, first = profile_names(), None
        for name in (None, *(name for name, _ in names[:5])):
            try:
                profile = load_profile(name)
                CheckedProfile(profile)
                _ = profile.base(), profile.idle_keys()
            except UserError as error:
                first = first or error
        return first
    finally:
        del os.environ["NEMOTRON_ENV_FILE"]


def _read_manifest(folder: Path, content: bytes) -> object:
    from nemotron_dpo.steps.catalogue import describe, manifest

    put(folder, "a/step.toml", content)
    steps = manifest.discover(folder)
    return [describe.tree_view(steps), *((describe.describe(step, steps), describe.as_data(step, steps)) for step in steps)]


def _quiet(read: Callable[[Path, bytes], object]) -> Callable[[Path, bytes], object]:
    def quietly(folder: Path, content: bytes) -> object:
        with redirect_stderr(io.StringIO()):
            return read(folder, content)

    return quietly


TARGETS = (
    Target("config.yaml", _config_trees, as_yaml, _read_config),
    Target("dotlist", _overrides, as_words, _read_overrides),
    Target("theirs.yaml", _theirs, as_yaml, _quiet(_read_theirs)),
    Target("env.toml", _env_toml, as_is, _read_env_toml),
    Target("step.toml", lambda: [(STEP / "step.toml").read_bytes()], as_is, _read_manifest),
)

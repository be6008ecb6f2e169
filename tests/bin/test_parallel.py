"""Every way of dividing a policy over processes against one process: per-token log-probs, gradient norms, the loss curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import open_reader
from support import families, real_assets, small
from support.programs import check, metrics, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.sequence_packing.train_mb_tokens=128",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=3",  # an epoch has two
    "dpo.max_num_epochs=2",
    "dpo.val_at_start=false",
    "dpo.val_at_end=true",
    "checkpointing.enabled=false",
    "logger.token_metrics=true",
)
SCORING = ("--precision", "float32", "--micro-batch-tokens", 128)
NINE: dict[str, Any] = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "intermediate_size": 96}
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": small.write_llama,
    "nine-heads": lambda folder: small.write_llama(folder, seed=3, **NINE),  # as SmolLM2 has, with 3 key/value heads
    "three-layers": lambda folder: small.write_llama(folder, seed=2, num_hidden_layers=3),
    "mixtral": lambda folder: families.write_model(folder, "mixtral"),
    "smollm2": lambda folder: small.first_layers(real_assets.smollm2(), folder, 2),
}
# a real model wants smaller steps than a random one, and takes longer over everything
QUICKER = ("dpo.val_period=0", "dpo.val_at_end=false")
SETTINGS = {"smollm2": ("policy.optimizer.lr=1e-5", "policy.train_global_batch_size=2", "dpo.max_num_steps=2", *QUICKER)}
PAIRS = {"smollm2": 4}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model with its pairs.arrow, scored.arrow and run, all made by one process."""
    root = tmp_path_factory.mktemp("single")

    def made(model: str) -> Path:
        folder = root / model
        if not folder.exists():
            folder.mkdir()
            MODELS[model](folder / "policy")
            small.write_pairs(folder / "pairs.arrow", small.random_pairs(PAIRS.get(model, 16), seed=11))
            policy = ("--policy", folder / "policy")
            check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", *policy, *SCORING)
            scored = folder / "scored.arrow"
            settings = (*COMMON, *SETTINGS.get(model, ()))
            check("dpo-train", scored, *policy, "--run-dir", folder / "run", "--validation", scored, *settings)
        return folder

    return made


def logps(path: Path) -> np.ndarray:
    with open_reader(path, "scored_pairs") as reader:
        pairs = Pairs.of(reader.read_all())
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    return np.concatenate([*pairs.ref_chosen.by_part(), *pairs.ref_rejected.by_part()])


OPTIONS = {
    "tensor_model_parallel_size": "--tensor-parallel",
    "pipeline_model_parallel_size": "--pipeline-parallel",
    "context_parallel_size": "--context-parallel",
    "expert_model_parallel_size": "--expert-parallel",
    "num_layers_in_first_pipeline_stage": "--first-stage-layers",
}
LAYOUTS = [
    ("llama", 2, ""),
    ("llama", 2, "distributed_data_parallel_config.use_distributed_optimizer=false"),
    ("llama", 2, "tensor_model_parallel_size=2"),
    ("llama", 2, "tensor_model_parallel_size=2 sequence_parallel=true"),
    ("nine-heads", 3, "tensor_model_parallel_size=3 sequence_parallel=true"),
    ("llama", 4, "tensor_model_parallel_size=4"),  # two ranks to each key/value head
    ("llama", 2, "pipeline_model_parallel_size=2"),
    ("three-layers", 2, "pipeline_model_parallel_size=2 num_layers_in_first_pipeline_stage=1"),
    ("llama", 2, "context_parallel_size=2"),
    ("llama", 4, "tensor_model_parallel_size=2"),  # and two data-parallel replicas
    ("llama", 4, "tensor_model_parallel_size=2 pipeline_model_parallel_size=2 sequence_parallel=true"),
    ("llama", 4, "tensor_model_parallel_size=2 context_parallel_size=2 sequence_parallel=true"),
    ("mixtral", 2, "expert_model_parallel_size=2"),
    ("smollm2", 3, "tensor_model_parallel_size=3"),
]
LAUNCHED = ("",)  # under torchrun's own agent; so are jobs of test_resume, test_dpo_train, test_two_hosts and test_machines
REAL = {"smollm2": pytest.mark.real}


@pytest.mark.parametrize(
    ("model", "processes", "layout"),
    [pytest.param(*row, id="{} x{} {}".format(*row), marks=REAL.get(row[0], ())) for row in LAYOUTS],
)
def test_several_processes_equal_one(
    model: str, processes: int, layout: str, single: Callable[[str], Path], tmp_path: Path
) -> None:
    one = single(model)
    policy, keys = ("--policy", one / "policy"), dict(word.split("=") for word in layout.split())
    options = [word for key, option in OPTIONS.items() if key in keys for word in (option, keys[key])]
    torchrun(processes, "ref-logprobs", one / "pairs.arrow", "-o", tmp_path / "scored.arrow", *policy, *SCORING, *options)
    assert np.allclose(logps(tmp_path / "scored.arrow"), logps(one / "scored.arrow"), rtol=1e-4, atol=1e-5)

    scored, settings = one / "scored.arrow", [f"policy.megatron_cfg.{word}" for word in layout.split()]
    settings = [*COMMON, *SETTINGS.get(model, ()), *settings]
    arguments = (*policy, "--run-dir", tmp_path / "run", "--validation", scored, *settings)
    torchrun(processes, "dpo-train", scored, *arguments, launched=layout in LAUNCHED)
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(one / "run"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            if not name.startswith(("timing", "memory")):
                near_zero = 0 if name in ("train/loss", "train/grad_norm") else 1e-4  # rewards start at 0
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=near_zero), name
    for ours, theirs in zip(logged(tmp_path / "run"), logged(one / "run"), strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-4, abs=1e-3) if isinstance(value, float) else value), name


def logged(run: Path) -> list[dict[str, Any]]:
    """What is known of each pair of each step and validation."""
    with open_reader(run / "pairs_log.arrow", "pairs_log") as reader:
        return reader.read_all().to_pylist()

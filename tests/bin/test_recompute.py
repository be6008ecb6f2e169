"""Activation recompute under tensor parallelism: the curve of the run that keeps all its activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support import small
from support.programs import check, losses, torchrun

COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler={name: constant, warmup_steps: 0}",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=3",
)


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes without recompute, beside its pairs."""
    folder = tmp_path_factory.mktemp("plain")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", "--policy", llama, "--precision", "float32")
    train(folder, folder, llama, "policy.megatron_cfg={tensor_model_parallel_size: 2}")
    return folder


def train(data: Path, run_dir: Path, policy: Path, *overrides: str) -> None:
    torchrun(2, "dpo-train", data / "scored.arrow", "--policy", policy, "--run-dir", run_dir, *COMMON, *overrides)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["", "recompute_granularity: selective, recompute_modules: [core_attn, mlp]"])
def test_the_curve_is_the_same(how: str, plain: Path, llama: Path, tmp_path: Path) -> None:
    settings = f"{{tensor_model_parallel_size: 2, activation_checkpointing: true, {how}}}"
    train(plain, tmp_path, llama, f"policy.megatron_cfg={settings}")
    assert len(losses(plain)) == 3
    assert np.allclose(losses(tmp_path), losses(plain), rtol=0, atol=1e-6)

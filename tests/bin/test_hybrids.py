"""Hybrids through the programs: the tiny one's chain, and the layers of Nemotron-3-Nano under settings of NeMo-RL's recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from nemotron_dpo.steps.tiny_policy import write_policy
from support import hybrid_folders, programs, small

pytestmark = pytest.mark.slow
PAIRS = programs.ROOT / "configs" / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"
LN_2 = 0.6931471805599453
QUICK = ("policy.scheduler=null", "dpo.val_at_start=false", "dpo.val_at_end=false", "policy.train_global_batch_size=8")
# what the recipe for 8 GPUs says of the training, without what it says of the machine
RECIPE = """
policy:
  precision: bfloat16
  hf_config_overrides: {router_aux_loss_coef: 0.0}
  dtensor_cfg:
    _v2: true
    expert_parallel_size: 2
    activation_checkpointing: true
    automodel_kwargs: {backend: {_target_: nemo_automodel.components.models.common.utils.BackendConfig, experts: torch_mm}}
  offload_optimizer_for_logprob: true
"""


def theirs(folder: Path, pair: dict[str, Any], side: str) -> np.ndarray:
    """Log-probs of a response's tokens in transformers, float32."""
    prompt, response = pair["prompt_ids"], pair[f"{side}_ids"]
    with torch.inference_mode():
        logits = hybrid_folders.load(folder)(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return F.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def test_the_tiny_hybrid_is_aligned_and_transformers_agrees(tmp_path: Path) -> None:
    policy, rows, run = tmp_path / "policy", tmp_path / "rows.jsonl", tmp_path / "run"
    write_policy([PAIRS], policy, hybrid=True)
    rows.write_text("".join(PAIRS.read_text().splitlines(keepends=True)[:24]))
    programs.check("preference-tokenize", rows, "-o", tmp_path / "pairs.arrow", "--tokenizer", policy)
    score = ("--precision", "float32", "--policy")
    programs.check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "scored.arrow", *score, policy)
    settings = ("policy.precision=float32", "policy.optimizer.lr=1e-3", "dpo.max_num_steps=3", *QUICK)
    programs.check("dpo-train", tmp_path / "scored.arrow", "--policy", policy, "--run-dir", run, *settings)
    steps = programs.metrics(run)
    assert steps[0]["train/loss"] == pytest.approx(LN_2, abs=1e-6)
    assert steps[-1]["train/loss"] < 0.68
    programs.check("ckpt-export", run, "-o", tmp_path / "hf", "--to", "hf", "--verify", 2)
    programs.check("ckpt-export", tmp_path / "hf", "-o", tmp_path / "again", "--to", "megatron", "--verify", 2)
    trained = run / "checkpoints" / "step_3" / "policy"
    programs.check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "trained.arrow", *score, trained)
    pair = pa_rows(tmp_path / "trained.arrow")[0]
    for side in ("chosen", "rejected"):
        difference = np.abs(theirs(tmp_path / "hf", pair, side) - np.array(pair[f"ref_{side}_logps"]))
        assert difference.max() <= 1e-4
        assert np.abs(theirs(policy, pair, side) - np.array(pair[f"ref_{side}_logps"])).max() > 1e-2  # it was trained


@pytest.mark.multiprocess
def test_a_folder_is_divided_and_put_together_as_it_was(tmp_path: Path) -> None:
    """Tensor parallelism divides what in_proj and the convolution stack part by part; pipeline stages have other layers each."""
    folder = hybrid_folders.write_hybrid(tmp_path / "hf", hybrid_folders.PATTERNS["experts"])
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8))
    score = ("--policy", folder, "--precision", "float32")
    programs.check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "scored.arrow", *score)
    settings = ("policy.precision=float32", "policy.optimizer.lr=1e-3", "dpo.max_num_steps=2", "dpo.max_num_epochs=2", *QUICK)
    settings += ("policy.max_total_sequence_length=256",)
    losses: dict[str, list[float]] = {}
    for layout in ("", "tensor_model_parallel_size=2 sequence_parallel=true", "pipeline_model_parallel_size=2"):
        run = tmp_path / f"run{len(losses)}"
        sizes = [f"policy.megatron_cfg.{size}" for size in layout.split()]
        argv = (tmp_path / "scored.arrow", "--policy", folder, "--run-dir", run, *settings, *sizes)
        programs.torchrun(2, "dpo-train", *argv) if layout else programs.check("dpo-train", *argv)
        programs.check("ckpt-export", run, "-o", run / "hf", "--to", "hf", "--verify", 2)
        losses[layout] = [step["train/loss"] for step in programs.metrics(run)]
        weights, alone = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in (run.name, "run0"))
        assert max((weights[key] - tensor).abs().max() for key, tensor in alone.items()) <= 1e-4, layout
        assert losses[layout] == pytest.approx(losses[""], abs=1e-5)
    assert losses[""][0] == pytest.approx(LN_2, abs=1e-6)


@pytest.mark.multiprocess
def test_the_52_layers_of_nemotron_3_nano_train_as_its_recipe_says(tmp_path: Path) -> None:
    """Its exact pattern, in small: bf16, experts divided over two processes, layers recomputed, no auxiliary loss."""
    sizes: dict[str, Any] = {"n_routed_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 4096}
    folder = hybrid_folders.write_hybrid(tmp_path / "hf", hybrid_folders.NANO_3, dtype=torch.bfloat16, **sizes)
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8))
    programs.check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "scored.arrow", "--policy", folder)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = (
        "-c",
        tmp_path / "recipe.yaml",
        "policy.optimizer.lr=1e-3",
        "dpo.max_num_steps=2",
        "dpo.max_num_epochs=2",
        *QUICK,
    )
    run = tmp_path / "run"
    programs.torchrun(2, "dpo-train", tmp_path / "scored.arrow", "--policy", folder, "--run-dir", run, *settings)
    losses = [step["train/loss"] for step in programs.metrics(run)]
    assert losses[0] == pytest.approx(LN_2, abs=1e-3)
    assert losses[1] < losses[0]
    config = json.loads((folder / "config.json").read_text())
    programs.check("ckpt-export", run, "-o", tmp_path / "back", "--to", "hf")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: back[key] for key in ("hybrid_override_pattern", "num_hidden_layers", "n_routed_experts")} == {
        key: config[key] for key in ("hybrid_override_pattern", "num_hidden_layers", "n_routed_experts")
    }


def pa_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    with pa.OSFile(os.fspath(path)) as file:
        return pa.ipc.open_stream(file).read_all().slice(0, 1).to_pylist()

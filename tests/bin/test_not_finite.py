"""A policy whose weights overflow: the run stops and names the input lines."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support import small
from support.programs import error_line, run


def test_infinite_logits_stop_the_run_and_name_the_pairs(llama: Path, tmp_path: Path) -> None:
    broken = small.write_llama(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    pairs = small.random_pairs(4, seed=1)
    for side in (pairs.prompts, pairs.chosen, pairs.rejected):
        for ids in side:
            ids[ids == 7] = 8
    pairs.prompts[2][0] = 7
    source = small.write_pairs(tmp_path / "pairs.arrow", pairs)
    sft = ("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "policy.train_global_batch_size=4")
    size = ("policy.precision=float32", "policy.max_total_sequence_length=64")
    done = run("dpo-train", source, "--policy", broken, "--run-dir", tmp_path / "run", *sft, *size)
    assert "is not finite: the pairs of input lines 1, 2, 3, 4" in error_line(done, "dpo-train")
    assert done.returncode == 1
    assert not (tmp_path / "run" / "checkpoints").exists()

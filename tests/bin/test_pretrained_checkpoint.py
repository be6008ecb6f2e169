"""`checkpointing.pretrained_checkpoint`: scoring and training start from a checkpoint of Megatron-LM."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import small
from megatron_lm import arguments, write
from programs import check, error_line, losses, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


def test_training_from_a_megatron_lm_checkpoint_begins_at_ln_2(llama: Path, tmp_path: Path) -> None:
    checkpoint = write(llama, tmp_path / "lm", arguments(), {"singleton_local_shards": True})
    pairs, scored = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8)), tmp_path / "scored.arrow"
    precision = ("--precision", "float32")
    check("ref-logprobs", pairs, "-o", scored, "--policy", checkpoint, "--hf-model", llama, *precision)
    overrides = [
        f"checkpointing.pretrained_checkpoint.path={checkpoint}",
        "checkpointing.pretrained_checkpoint.format=megatron_lm",
        "checkpointing.enabled=false",
        "policy.precision=float32",
        "policy.train_global_batch_size=8",
        "policy.max_total_sequence_length=128",
        "dpo.max_num_steps=1",
        "dpo.val_at_start=false",
        "dpo.val_at_end=false",
    ]
    check("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path / "run", *overrides)
    assert losses(tmp_path / "run") == pytest.approx([math.log(2)], abs=1e-5)


def test_a_hugging_face_folder_is_no_pretrained_checkpoint(llama: Path, tmp_path: Path) -> None:
    pairs = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(2))
    overrides = [f"checkpointing.pretrained_checkpoint.path={llama}", "policy.train_global_batch_size=2"]
    done = run("dpo-train", pairs, "--policy", llama, "--run-dir", tmp_path / "run", *overrides)
    assert error_line(done, "dpo-train").endswith('"checkpointing.pretrained_checkpoint.path" is no Megatron checkpoint')
    assert done.returncode == 1

"""`checkpointing.pretrained_checkpoint`: scoring and training start from a checkpoint of Megatron-LM or -Bridge."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_dpo.sources import resolve
from support import small
from support.megatron_lm import arguments, write
from support.programs import check, error_line, losses, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


def of_megatron_lm(llama: Path, root: Path) -> Path:
    return write(llama, root, arguments(), {"singleton_local_shards": True})


def of_megatron_bridge(llama: Path, root: Path) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(llama), root, "megatron", None)
    return root


@pytest.mark.parametrize(("form", "make"), [("megatron_lm", of_megatron_lm), ("megatron_bridge", of_megatron_bridge)])
@pytest.mark.parametrize("named", ["root", "iteration"])
def test_training_from_a_checkpoint_begins_at_ln_2(form: str, make: Callable, named: str, llama: Path, tmp_path: Path) -> None:
    """`--policy` is another model of the same shape: the weights must be the checkpoint's."""
    root, other = make(llama, tmp_path / "root"), small.write_llama(tmp_path / "other", seed=4)
    checkpoint = root if named == "root" else resolve(root).path
    pairs, scored = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8)), tmp_path / "scored.arrow"
    model = ("--hf-model", other) if form == "megatron_lm" else ()
    check("ref-logprobs", pairs, "-o", scored, "--policy", root, *model, "--precision", "float32")
    overrides = [
        f"checkpointing.pretrained_checkpoint.path={checkpoint}",
        f"checkpointing.pretrained_checkpoint.format={form}",
        "checkpointing.enabled=false",
        "policy.precision=float32",
        "policy.train_global_batch_size=8",
        "policy.max_total_sequence_length=128",
        "dpo.max_num_steps=1",
        "dpo.val_at_start=false",
        "dpo.val_at_end=false",
    ]
    check("dpo-train", scored, "--policy", other, "--run-dir", tmp_path / "run", *overrides)
    assert losses(tmp_path / "run") == pytest.approx([math.log(2)], abs=1e-5)


def test_a_hugging_face_folder_is_no_pretrained_checkpoint(llama: Path, tmp_path: Path) -> None:
    pairs = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(2))
    overrides = [f"checkpointing.pretrained_checkpoint.path={llama}", "policy.train_global_batch_size=2"]
    done = run("dpo-train", pairs, "--policy", llama, "--run-dir", tmp_path / "run", *overrides)
    assert error_line(done, "dpo-train").endswith('"checkpointing.pretrained_checkpoint.path" is no Megatron checkpoint')
    assert done.returncode == 1

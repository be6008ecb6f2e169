"""ckpt-export as a program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemotron_dpo.sources import resolve
from support.programs import check, error_line, run, run_with_small_files


@pytest.mark.slow
def test_import_and_export_keep_every_bit(llama: Path, tmp_path: Path) -> None:
    check("ckpt-export", llama, "-o", tmp_path / "megatron", "--to", "megatron")
    check("ckpt-export", tmp_path / "megatron" / "iter_0000000", "-o", tmp_path / "hf", "--to", "hf")
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("nowhere/to/find", "--to", "hf"), 1, "no such model folder"),
        (("{tmp}/empty", "--to", "hf"), 1, "is neither an HF folder (config.json) nor a Megatron checkpoint"),
        (("{tmp}/gpt2", "--to", "megatron"), 1, "model_type 'gpt2' is not supported"),
        (("{tmp}/weightless", "--to", "megatron"), 1, "only safetensors weights are read"),
        (("{llama}", "--to", "onnx"), 2, "'onnx' is not one of"),
        (("{llama}", "--to", "hf", "-o", "{tmp}/gpt2"), 2, "exists already"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], status: int, message: str, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_bytes((llama / "config.json").read_bytes())
    filled = [argument.format(tmp=tmp_path, llama=llama) for argument in arguments]
    done = run("ckpt-export", "-o", tmp_path / "out", *filled)
    assert message in error_line(done, "ckpt-export")
    assert done.returncode == status
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["megatron", "hf"])
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(form: str, llama: Path, tmp_path: Path) -> None:
    done = run_with_small_files(20_000, "ckpt-export", llama, "-o", tmp_path / "out", "--to", form)
    assert error_line(done, "ckpt-export").startswith(f"{tmp_path / 'out'}: cannot be written (")
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tracker_is_named(llama: Path, tmp_path: Path) -> None:
    check("ckpt-export", llama, "-o", tmp_path / "megatron", "--to", "megatron")
    assert resolve(tmp_path / "megatron").path.name == "iter_0000000"
    (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").write_text("7")
    done = run("ckpt-export", tmp_path / "megatron", "-o", tmp_path / "out", "--to", "hf")
    assert "names iter_0000007, which is missing or incomplete" in error_line(done, "ckpt-export")


@pytest.mark.parametrize("form", ["megatron", "hf"])
def test_verify_scores_what_was_written(form: str, llama: Path, tmp_path: Path) -> None:
    done = check("ckpt-export", llama, "-o", tmp_path / "out", "--to", form, "--precision", "bfloat16", "--verify", "3")
    assert f"({form}), 3 probe rows score alike (largest difference 0)" in done.stderr.decode()


def test_verify_without_a_number_takes_no_word_that_follows(llama: Path, tmp_path: Path) -> None:
    for name, rest in (("first", ["--verify", llama, "--to", "hf"]), ("last", [llama, "--to", "hf", "--verify"])):
        done = check("ckpt-export", "-o", tmp_path / name, *rest)
        assert "4 probe rows score alike" in done.stderr.decode()
    done = run("ckpt-export", llama, "-o", tmp_path / "no", "--to", "hf", "--verify", "-1")
    assert done.returncode == 2
    assert "-1 is not in the range x>=0" in error_line(done, "ckpt-export")

"""Policies whose files are links: those of the hub's cache train and are saved, others are refused before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support import small
from support.programs import check, error_line, run
from support.small_tokenizers import byte_level, save

SFT = (
    "dpo.preference_loss_weight=0",
    "dpo.sft_loss_weight=1",
    "policy.train_global_batch_size=4",
    "policy.max_total_sequence_length=64",
    "dpo.max_num_steps=1",
)
OUT = "is a link out of its folder: put the file itself there, if it belongs to the model"


@pytest.fixture
def policy(llama: Path, tmp_path: Path) -> Path:
    """A policy with a tokenizer and a further template."""
    folder = shutil.copytree(llama, tmp_path / "policy")
    save(folder, byte_level(), eos_token="<|im_end|>")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(4, seed=11))
    return tmp_path / "pairs.arrow"


def linked(policy: Path, folder: Path, blobs: Path, to: str) -> Path:
    """`policy` as a `folder` of links `to` the `blobs`, which get its files."""
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in policy.rglob("*") if path.is_file())):
        shutil.move(path, blobs / str(number))
        name = path.relative_to(policy)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(Path(*[".."] * (len(name.parts) - 1), to, str(number)))
    return folder


def test_links_out_of_a_policy_are_refused_before_the_first_step(policy: Path, pairs: Path, tmp_path: Path) -> None:
    folder = linked(policy, tmp_path / "links", tmp_path / "elsewhere", "../elsewhere")
    arguments = ("dpo-train", pairs, "--policy", folder, "--run-dir", tmp_path / "run", *SFT)
    assert error_line(run(*arguments), "dpo-train") == f"{folder}/tokenizer.json: {OUT}"
    assert not (tmp_path / "run").exists()
    check(*arguments, "checkpointing.enabled=false")  # nothing would be copied


def test_the_hub_s_cache_trains_and_is_saved(policy: Path, pairs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--me--policy"
    kept = {path.relative_to(policy): path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    folder = linked(policy, cache / "snapshots" / "abc", cache / "blobs", "../../blobs")
    check("dpo-train", pairs, "--policy", folder, "--run-dir", tmp_path / "run", *SFT)
    check("ckpt-export", tmp_path / "run", "-o", tmp_path / "hf", "--to", "hf")
    copies = tmp_path / "run/checkpoints/step_1/policy/iter_0000001/tokenizer", tmp_path / "hf"
    names = [name for name in kept if "token" in str(name) or "template" in str(name)]
    assert len(names) == 3
    assert all((copy / name).read_bytes() == kept[name] and not (copy / name).is_symlink() for copy in copies for name in names)


@pytest.mark.parametrize("form", ["hf", "megatron"])
def test_a_checkpoint_s_tokenizer_folder_elsewhere_is_not_copied(form: str, policy: Path, tmp_path: Path) -> None:
    """A stranger's checkpoint with tokenizer -> ~/notes would be handed on with what lies there."""
    check("ckpt-export", policy, "-o", tmp_path / "checkpoint", "--to", "megatron")
    iteration = tmp_path / "checkpoint" / "iter_0000000"
    (iteration / "integrity.json").unlink()
    shutil.move(iteration / "tokenizer", tmp_path / "elsewhere")
    (iteration / "tokenizer").symlink_to(tmp_path / "elsewhere")
    said = error_line(run("ckpt-export", tmp_path / "checkpoint", "-o", tmp_path / "out", "--to", form), "ckpt-export")
    assert said == f"{iteration}/tokenizer: {OUT.replace('file', 'folder')}"
    assert not (tmp_path / "out").exists()
    (tmp_path / "elsewhere").rename(iteration / "kept")
    (iteration / "tokenizer").unlink()
    (iteration / "tokenizer").symlink_to("kept")
    check("ckpt-export", tmp_path / "checkpoint", "-o", tmp_path / "out", "--to", form)

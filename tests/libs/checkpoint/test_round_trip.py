"""HF -> checkpoint_megatron -> HF gives the same bits back; damaged checkpoints are one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support import small

pytestmark = pytest.mark.usefixtures("megatron")


def imported(folder: Path, tmp_path: Path, precision: str | None = None) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(folder), tmp_path / "megatron", "megatron", precision)
    return tmp_path / "megatron"


@pytest.mark.parametrize("fixture", ["llama", "untied_llama"])
def test_round_trip_is_bit_equal(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    folder = request.getfixturevalue(fixture)
    export(resolve(imported(folder, tmp_path)), tmp_path / "hf", "hf", None)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype, key
        assert torch.equal(tensor, after[key]), key


def test_transformers_loads_the_export_and_agrees(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(imported(llama, tmp_path)), tmp_path / "hf", "hf", None)
    ids = torch.arange(3, 23)[None]
    assert torch.equal(small.load_llama(tmp_path / "hf")(ids).logits, small.load_llama(llama)(ids).logits)


def test_precision_is_converted_on_request(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import run_config

    root = imported(llama, tmp_path, "bfloat16")
    assert run_config.read(resolve(root).path).dtype == "bfloat16"


def test_saving_starts_no_process_and_a_writer_that_fails_is_one_line(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """megatron-core's own writers are processes: of one that is killed the save waits without end."""

    def fork() -> int:
        raise AssertionError("a process is started")

    monkeypatch.setattr(os, "fork", fork)
    imported(llama, tmp_path / "whole")
    real = os.fsync

    def fsync(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith("__0_1.distcp"):
            raise OSError(errno.EIO, "Input/output error")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    target = tmp_path / "not" / "megatron"
    with pytest.raises(UserError, match=rf"^{target}: cannot be written \(input/output error\)"):
        imported(llama, target.parent)
    assert not list(target.parent.iterdir())


def test_layout_is_nvidias(llama: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    root = imported(llama, tmp_path)
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    folder = "iter_0000000/"
    assert {"latest_checkpointed_iteration.txt", "latest_train_state.pt"} <= names
    assert {folder + n for n in (".metadata", "common.pt", "metadata.json", "run_config.yaml", "train_state.pt")} <= names
    keys = FileSystemReader(root / "iter_0000000").read_metadata().state_dict_metadata
    shapes = {key: tuple(meta.size) for key, meta in keys.items() if isinstance(meta, TensorStorageMetadata)}
    assert shapes["decoder.layers.self_attention.linear_qkv.weight"] == (2, 64, 32)  # layers, (4 + 2 * 2) heads * 8, hidden
    assert shapes["decoder.layers.self_attention.linear_qkv.layer_norm_weight"] == (2, 32)
    assert shapes["decoder.layers.mlp.linear_fc1.weight"] == (2, 128, 32)
    assert any(key.startswith("decoder.final_layernorm._extra_state") for key in keys)
    assert "output_layer.weight" not in keys


def test_a_failed_export_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_dpo.checkpoint import export as module

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.hf, "save", fail)
    with pytest.raises(OSError, match="No space"):
        module.export(resolve(llama), tmp_path / "out", "hf", None)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_in_an_exported_weight_is_found(llama: Path, tmp_path: Path) -> None:
    """safetensors carry no checksums: our exports list those of their weights, and what a person edits stays as it is."""
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.checkpoint.policy import open_policy

    out = tmp_path / "hf"
    export(resolve(imported(llama, tmp_path)), out, "hf", None)
    listed = json.loads((out / "integrity.json").read_text())["files"]
    weights = out / "model.safetensors"
    assert listed == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    (out / "chat_template.jinja").write_text("{{ messages }}")
    open_policy(resolve(out), None)
    whole = weights.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], None):
        weights.write_bytes(damaged) if damaged else weights.unlink()
        with pytest.raises(UserError, match=r"model\.safetensors"):
            open_policy(resolve(out), None)

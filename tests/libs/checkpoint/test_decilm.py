"""Llama-Nemotron Super and Ultra: layers that differ or lack a part, from folder to policy and back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nemotron_dpo.checkpoint import run_config
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support import decilm, hybrids
from support.against_transformers import assert_same
from support.programs import execute_job

JOB = Path(hybrids.__file__).with_name("hybrid_job.py")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(said: dict[str, Any]) -> Any:
    return config.from_config(said, Path("config.json"))


@pytest.mark.usefixtures("megatron")
def test_packed_shared_prompts_and_their_gradients_equal_two_separate_forwards(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    theirs = decilm.model()
    assert_same(open_policy(resolve(decilm.write(tmp_path / "hf", theirs)), "float32"), theirs)


@pytest.mark.slow
@pytest.mark.usefixtures("megatron")
def test_there_and_back_is_bit_equal(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    folder = decilm.write(tmp_path / "hf", decilm.model(), dtype=torch.bfloat16)
    export(resolve(folder), tmp_path / "megatron", "megatron", None, verify=2)
    export(resolve(tmp_path / "megatron"), tmp_path / "back", "hf", None, verify=2)
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back"))
    for block, written in zip(before["block_configs"], after["block_configs"], strict=True):
        for part in ("attention", "ffn"):
            kept = {key: value for key, value in block[part].items() if key not in ("sparsify", "window_length")}
            assert written[part] == kept


@pytest.mark.slow
@pytest.mark.multiprocess
def test_several_processes_equal_one(tmp_path: Path) -> None:
    blocks = ((2, 256), (None, 512), (2, None), (1, 256))
    folder = decilm.write(tmp_path / "hf", decilm.model(blocks), blocks)

    def run(processes: int, layout: dict[str, Any], **words: Any) -> dict[str, Any]:
        job = json.dumps({"layout": layout, "out": str(tmp_path / "out.json"), **words})
        ended = execute_job(processes, [sys.executable, str(JOB), str(folder), job])
        assert ended.returncode == 0, ended.stderr.decode()
        return json.loads((tmp_path / "out.json").read_text())

    one, saved = run(1, {}, save=str(tmp_path / "one")), {"load": str(tmp_path / "one")}
    assert one["losses"][1] < one["losses"][0]
    pairs = ((run(2, {"tensor": 2}), one), (run(2, {"pipeline": 2}, **saved), run(1, {}, **saved)))
    for done, due in pairs:
        assert done["losses"] == pytest.approx(due["losses"], rel=1e-5)
        assert done["norms"] == pytest.approx(due["norms"], rel=1e-5)


def test_run_config_says_the_same(tmp_path: Path) -> None:
    """Ours, and Bridge's, which has config.json as it was and no section of ours."""
    for changes in ({}, {"rope_scaling": LLAMA3, "rope_theta": 500000.0}):
        said = {**decilm.said(), **changes}
        architecture = read(said)
        run_config.write(replace(architecture, eos_token_id=[2, 5]), tmp_path)
        assert run_config.read(tmp_path) == replace(architecture, eos_token_id=[2, 5])
        model = yaml.safe_load((tmp_path / "run_config.yaml").read_text())["model"]
        model |= {"heterogeneous_layers_config_encoded_json": json.dumps(said), "heterogeneous_block_specs": True}
        (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"model": model}))
        assert run_config.read(tmp_path) == architecture
        model["hidden_size"] = 64
        (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"model": model}))
        with pytest.raises(UserError, match="hidden_size is 64, and hidden_size of heterogeneous_layers_config"):
            run_config.read(tmp_path)


def test_sizes_are_those_of_nvidias_rule() -> None:
    """Super 49B: 5.25 * 8192 * 2 / 3 = 28672; 1.3125 of it is 7168; others are rounded up to a multiple of 256."""
    said = {**decilm.said(((4, 256),) * 4), "hidden_size": 8192, "num_attention_heads": 64}
    for block, factor in zip(said["block_configs"], (5.25, 1.3125, 0.5, 1.33), strict=True):
        block["ffn"]["ffn_mult"] = factor
    sizes = [layer.feed_forward.ffn_hidden_size for layer in read(said).layers]
    assert sizes == [28672, 7168, 2816, 7424]
    assert [layer.feed_forward.ffn_hidden_size for layer in read(config.write(read(said))).layers] == sizes
    said["block_configs"][0]["ffn"] = {"intermediate_size": 300}
    assert read(config.write(read(said))).layers[0].feed_forward.ffn_hidden_size == 300


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    for part, changes, message in (
        ("attention", {"replace_with_linear": True}, "replace_with_linear True of a block's attention is not supported"),
        ("ffn", {"replace_with_linear": True}, "replace_with_linear True of a block's ffn is not supported"),
        ("attention", {"window_length": 1024}, "window_length 1024 of a block's attention is not supported"),
        ("ffn", {"sparsify": ["a"]}, r"sparsify \['a'\] of a block's ffn is not supported"),
        ("ffn", {"hidden_act": "gelu"}, "hidden_act 'gelu' of a block's ffn is not supported"),
        ("attention", {"n_heads_in_group": 3}, "4 heads are no groups of 3"),
        ("attention", {"n_heads_in_group": None}, "n_heads_in_group is None"),
        ("ffn", {"ffn_mult": None}, "does not describe a model"),
        ("ffn", {"ffn_mult": 0.0}, "ffn_mult is 0.0"),
    ):
        said = decilm.said()
        said["block_configs"][0][part] |= changes
        with pytest.raises(UserError, match=message):
            read(said)
    for changes, message in (
        ({"num_hidden_layers": 5}, "block_configs names 6 layers, and num_hidden_layers 5"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"block_configs": None}, "lacks 'block_configs'"),
    ):
        with pytest.raises(UserError, match=message):
            read({**decilm.said(), **changes})
    with pytest.raises(UserError, match="layers of one part each are not supported"):
        read(decilm.said(((2, None), (None, 256))))

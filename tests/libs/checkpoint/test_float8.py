"""Weights in blocks of 8 bits, as DeepSeek-V3 is published: read as bfloat16, written so, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.errors import UserError
from support import families, programs, wrappers

ROWS, COLUMNS = 16, 8  # of a block, which are 128 each where models are larger
SAID = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [ROWS, COLUMNS]}


def quantize(folder: Path, said: dict[str, Any] | None) -> dict[str, torch.Tensor]:
    """Put the linear layers of a folder into 8 bits. What they are then in bfloat16, element by element, is returned."""
    tensors = load_file(folder / "model.safetensors")
    due = dict(tensors)
    for name in [key for key in tensors if key.endswith("_proj.weight")]:
        weight = tensors[name].float()
        factors = torch.empty(-(-weight.shape[0] // ROWS), -(-weight.shape[1] // COLUMNS)).uniform_(0.001, 0.01)
        spread = np.array(
            [[factors[i // ROWS, j // COLUMNS].item() for j in range(weight.shape[1])] for i in range(len(weight))]
        )
        tensors[name] = (weight / torch.from_numpy(spread)).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = factors
        product = tensors[name].float().numpy() * spread.astype(np.float32)
        due[name] = torch.from_numpy(product).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **({"quantization_config": said} if said else {})}))
    return due


@pytest.mark.slow
@pytest.mark.usefixtures("megatron")
def test_weights_in_8_bits_become_bfloat16_and_it_is_said(tmp_path: Path) -> None:
    for model_type in ("deepseek_v3", "qwen3"):
        folder = families.write_model(tmp_path / model_type, model_type, dtype=torch.bfloat16)
        due = quantize(folder, SAID)
        assert hf_folder.precision(folder) == "bfloat16"
        done = programs.check("ckpt-export", folder, "-o", tmp_path / f"{model_type}-hf", "--to", "hf")
        count = sum(key.endswith("_proj.weight") for key in due)
        assert f"{count} weights in 8 bits are read as bfloat16, in which the policy is computed and".encode() in done.stderr
        written = load_file(tmp_path / f"{model_type}-hf" / "model.safetensors")
        assert written.keys() == due.keys()
        for key, tensor in due.items():
            assert tensor.dtype == written[key].dtype, key
            assert torch.equal(tensor, written[key]), key
        assert "quantization_config" not in json.loads((tmp_path / f"{model_type}-hf" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("megatron")
def test_weights_with_one_factor_each_are_read_within_a_model_that_sees(tmp_path: Path) -> None:
    """As Ministral 3 is published: factors of activations beside them, the tower and the embedding plain."""
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.sources import resolve

    folder = wrappers.write_model(tmp_path / "hf", "mistral3, ministral3")
    due = load_file(folder / "model.safetensors")
    tensors = dict(due)
    for number, name in enumerate(key for key in due if key.startswith("language_model.") and key.endswith("_proj.weight")):
        factor = torch.tensor(2.0**-9 * (1 + number / 64)).to(torch.bfloat16)
        tensors[name] = (due[name].float() / factor.float()).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = factor
        tensors[name.removesuffix("weight") + "activation_scale"] = torch.tensor(0.5)
        due[name] = (tensors[name].float() * factor.float()).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    plain = json.loads((folder / "config.json").read_text())
    said = {"activation_scheme": "static", "dequantize": False, "quant_method": "fp8", "weight_block_size": None}
    (folder / "config.json").write_text(json.dumps({**plain, "quantization_config": said}))
    assert hf_folder.precision(folder) == "bfloat16"
    assert "14 weights in 8 bits are read as bfloat16" in hf_folder.left_out(folder)[0]
    export(resolve(folder), tmp_path / "back", "hf", None)
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == due.keys()
    assert all(torch.equal(tensor, written[key]) and tensor.dtype == written[key].dtype for key, tensor in due.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == plain


@pytest.mark.usefixtures("megatron")
def test_factors_that_do_not_belong_to_their_weights_are_refused(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    for said, message in (
        (
            {**SAID, "weight_block_size": [ROWS, 2 * COLUMNS]},
            r"holds model.layers.0.self_attn.\w_proj.weight \(\d+, \d+\) in blocks of \(16, 16\) with",
        ),
        (None, "holds model.layers.0.self_attn.._proj.weight as float8_e4m3fn, which means nothing without its scales"),
    ):
        folder = families.write_model(tmp_path / str(said is None), "qwen3")
        quantize(folder, said)
        with pytest.raises(UserError, match=message):
            open_policy(resolve(folder), None)


@pytest.mark.usefixtures("megatron")
def test_a_factor_that_is_no_number_is_refused(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    folder = families.write_model(tmp_path / "hf", "qwen3")
    quantize(folder, SAID)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[f"{name}_scale_inv"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"holds a factor of {name} that is no number"):
        open_policy(resolve(folder), None)


def test_other_quantizations_are_refused_by_config() -> None:
    for said in ({"quant_method": "gptq"}, {**SAID, "weight_block_size": [0, 8]}, {**SAID, "fmt": "e5m2"}):
        with pytest.raises(UserError, match="quantization_config of any kind is not supported"):
            config.from_config({"model_type": "llama", "quantization_config": said}, Path("config.json"))

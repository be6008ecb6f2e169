"""Experts in 4 bits: numbers worked out by hand from the format, and a whole folder against transformers' own reading of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint import mxfp4
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support import families

pytestmark = pytest.mark.usefixtures("megatron")


def test_numbers_by_hand() -> None:
    """0x21 is 0.5 and, in the upper half, 1.0; 0xf7 is 6.0 and -6.0; exponents 127 and 129 are times 1 and times 4."""
    blocks = torch.zeros(1, 2, 16, dtype=torch.uint8)
    blocks[0, :, 0], blocks[0, :, 1] = 0x21, 0xF7
    values = mxfp4.dequantized(blocks, torch.tensor([[127, 129]], dtype=torch.uint8))
    assert values[0, :5].tolist() == [0.5, 1.0, 6.0, -6.0, 0.0]
    assert values[0, 32:37].tolist() == [2.0, 4.0, 24.0, -24.0, 0.0]


def test_a_folder_in_4_bits_is_that_of_its_numbers_in_16(tmp_path: Path) -> None:
    """Both give the same weights, written as bfloat16; transformers' code says which numbers those are."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # seconds, which no other worker needs

    from nemotron_dpo.checkpoint.export import export

    folder = families.write_model(tmp_path / "hf", "gpt_oss", dtype=torch.bfloat16, intermediate_size=64)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    packed = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors[name].shape
        del packed[name]
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 126, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        tensors[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    export(resolve(folder), tmp_path / "out", "hf", None)
    (said,) = hf_folder.left_out(folder)
    assert said.startswith("4 weights in 4 bits (MXFP4) are read as bfloat16")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor), name
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_experts_with_biases_are_not_divided(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.families import config
    from nemotron_dpo.policy.layout import Layout

    architecture = config.read(families.write_model(tmp_path, "gpt_oss"))
    experts = architecture.layers[0].feed_forward
    assert experts is not None
    with pytest.raises(UserError, match=r"biases is not divided .*: set policy.megatron_cfg.expert_tensor_parallel_size=1"):
        list(experts.undivided(Layout(tensor=2, sequence=True)))
    assert list(experts.undivided(Layout(tensor=2, sequence=True, expert_tensor=1)))

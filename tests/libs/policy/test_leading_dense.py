"""Policies with leading dense layers and shared experts: gradients against transformers, several processes against one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.rotary import Rotary, Yarn
from support import families
from support.against_transformers import assert_same, assert_same_logps_and_gradients
from support.layout_jobs import assert_same as assert_same_steps
from support.layout_jobs import trained

CHANGES: dict[str, list[dict[str, Any]]] = {
    "glm4_moe": [{}, {"use_qk_norm": False, "attention_bias": False, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}],
    "deepseek_v3": [{}, {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}],
    "deepseek_v2": [{}],
    "glm4_moe_lite": [{}],
}
LAYOUTS: list[dict[str, Any]] = [{"tensor": 2, "sequence": True}, {"context": 2}]
EVERY: dict[str, Any] = {"tensor": 2, "sequence": True, "pipeline": 2, "expert": 2, "expert_tensor": 1}


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("model_type", CHANGES)
@pytest.mark.slow
def test_packed_shared_prompts_and_their_gradients_equal_two_separate_forwards(model_type: str, tmp_path: Path) -> None:
    for number, changes in enumerate(CHANGES[model_type]):
        folder = families.write_model(tmp_path / str(number), model_type, num_hidden_layers=3, **changes)
        assert_same_logps_and_gradients(folder)


@pytest.mark.usefixtures("megatron")
@pytest.mark.slow
def test_yarn_reaches_channels_without_positions_through_the_scale_of_scores(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import hf
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.policy.model import build_policy
    from nemotron_dpo.sources import resolve

    cases: tuple[dict[str, Any], ...] = ({"mscale": 0.707, "mscale_all_dim": 0.707}, {"mscale": 1.4, "mscale_all_dim": 0.5}, {})
    for factors in cases:
        yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, **factors}
        positions: dict[str, Any] = {"rope_parameters": {**yarn, "rope_theta": 10000.0, "beta_fast": 4, "beta_slow": 1}}
        folder = families.write_model(tmp_path / str(len(str(factors))), "deepseek_v3", **positions)
        theirs, plain = families.load(folder), {"rope_theta": 10000.0, "rope_type": "default"}
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, "rope_parameters": plain}))
        architecture = read_architecture(resolve(folder))
        rotary = Rotary(10000.0, scaling=Yarn(8.0, 16, beta_fast=4.0, beta_slow=1.0, **factors))
        mixers = [replace(cast("LatentAttention", layer.mixer), rotary=rotary) for layer in architecture.layers]
        layers = tuple(replace(layer, mixer=mixer) for layer, mixer in zip(architecture.layers, mixers, strict=True))
        ours = build_policy(replace(architecture, layers=layers), torch.float32, max_length=128)
        hf.load(ours, folder)
        assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("model_type", ["glm4_moe", "deepseek_v3"])
def test_several_processes_equal_one(model_type: str, tmp_path: Path) -> None:
    folder = families.write_model(tmp_path / "hf", model_type, max_position_embeddings=256)
    saved, several = str(tmp_path / "one"), str(tmp_path / "several")
    # adapters of latent attention, too
    adapters: list[dict[str, Any]] = [{"lora": {"dim": 4, "alpha": 8}}] if model_type == "deepseek_v3" else []
    biases = {"bias_rate": 1e-3}
    due = trained(1, folder, *({**biases, **job} for job in ({"save": saved}, {"load": saved}, *adapters)))
    one, on = due[:2]
    assert one["losses"][1] < one["losses"][0]
    for layout, found in zip(LAYOUTS, trained(2, folder, *({**biases, "layout": layout} for layout in LAYOUTS)), strict=True):
        assert_same_steps(found, one, layout)
    jobs = ({**biases, "layout": EVERY, **job} for job in ({"save": several}, {"load": saved}, *adapters))
    for found, wanted in zip(trained(4, folder, *jobs), due, strict=True):  # of the stages below one has no experts
        assert_same_steps(found, wanted, EVERY)
    (again,) = trained(1, folder, {**biases, "load": several})
    assert_same_steps(again, on, "back")

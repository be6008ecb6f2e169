"""Policies with leading dense layers and shared experts: gradients against transformers, several processes against one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.rotary import Rotary, Yarn
from support import families, hybrids
from support.against_transformers import assert_same, assert_same_logps_and_gradients
from support.programs import execute_job

JOB = Path(hybrids.__file__).with_name("hybrid_job.py")
CHANGES: dict[str, list[dict[str, Any]]] = {
    "glm4_moe": [{}, {"use_qk_norm": False, "attention_bias": False, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}],
    "deepseek_v3": [{}, {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}],
    "deepseek_v2": [{}],
    "glm4_moe_lite": [{}],
}
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"tensor": 2, "sequence": True}),
    (2, {"context": 2}),
    (4, {"tensor": 2, "sequence": True, "pipeline": 2, "expert": 2, "expert_tensor": 1}),
]


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

    def run(processes: int, layout: dict[str, Any], **words: Any) -> dict[str, Any]:
        job = json.dumps({"layout": layout, "bias_rate": 1e-3, "out": str(tmp_path / "out.json"), **words})
        ended = execute_job(processes, [sys.executable, str(JOB), str(folder), job])
        assert ended.returncode == 0, ended.stderr.decode()
        return json.loads((tmp_path / "out.json").read_text())

    def same(done: dict[str, Any], due: dict[str, Any]) -> None:
        assert done["losses"] == pytest.approx(due["losses"], rel=1e-5)
        assert done["norms"] == pytest.approx(due["norms"], rel=1e-5)
        for name, biases in done["biases"].items():
            assert biases == pytest.approx(due["biases"][name], abs=1e-6)

    one = run(1, {}, save=str(tmp_path / "one"))
    assert one["losses"][1] < one["losses"][0]
    for processes, layout in LAYOUTS[:-1]:
        same(run(processes, layout), one)
    same(run(*LAYOUTS[-1], save=str(tmp_path / "several")), one)
    on = run(1, {}, load=str(tmp_path / "one"))
    same(run(*LAYOUTS[-1], load=str(tmp_path / "one")), on)  # of whose stages one has no experts
    same(run(1, {}, load=str(tmp_path / "several")), on)
    if model_type == "deepseek_v3":  # adapters of latent attention, too
        adapters = {"lora": {"dim": 4, "alpha": 8}}
        same(run(*LAYOUTS[-1], **adapters), run(1, {}, **adapters))

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

    def run(processes: int, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """What these jobs find, done in turn by the same processes."""
        outs = [tmp_path / f"{processes} {number}.json" for number in range(len(jobs))]
        words = [json.dumps({"bias_rate": 1e-3, "out": str(out), **job}) for out, job in zip(outs, jobs, strict=True)]
        ended = execute_job(processes, [sys.executable, str(JOB), str(folder), *words])
        assert ended.returncode == 0, ended.stderr.decode()
        found = [json.loads(out.read_text()) for out in outs]
        for out in outs:
            out.unlink()
        return found

    def same(done: dict[str, Any], due: dict[str, Any]) -> None:
        assert done["losses"] == pytest.approx(due["losses"], rel=1e-5)
        assert done["norms"] == pytest.approx(due["norms"], rel=1e-5)
        for name, biases in done["biases"].items():
            assert biases == pytest.approx(due["biases"][name], abs=1e-6)

    saved, several = str(tmp_path / "one"), str(tmp_path / "several")
    # adapters of latent attention, too
    adapters: list[dict[str, Any]] = [{"lora": {"dim": 4, "alpha": 8}}] if model_type == "deepseek_v3" else []
    one, on, *adapted = run(1, {"save": saved}, {"load": saved}, *adapters)
    assert one["losses"][1] < one["losses"][0]
    for found in run(2, *({"layout": layout} for layout in LAYOUTS)):
        same(found, one)
    due = [one, on, *adapted]  # of the stages below one has no experts
    divided = run(4, *({"layout": EVERY, **job} for job in ({"save": several}, {"load": saved}, *adapters)))
    for found, wanted in zip(divided, due, strict=True):
        same(found, wanted)
    (again,) = run(1, {"load": several})
    same(again, on)

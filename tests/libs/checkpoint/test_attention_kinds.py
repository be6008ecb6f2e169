"""Windows and scaled rotary positions against transformers, on sequences that are longer than a window or a first context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve
from support import families, small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

SLIDING = ["full_attention", "sliding_attention"]
LLAMA3 = {"factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0, "original_max_position_embeddings": 24}
LONG = {"short_factor": [1.0, 1.3, 2.0], "long_factor": [3.0, 4.0, 7.0], "partial_rotary_factor": 0.75}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("mistral", {"sliding_window": 9}),
    "mixtral, window": ("mixtral", {"sliding_window": 7}),
    "phi3, window": ("phi3", {"sliding_window": 12}),
    "qwen2, window of later layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3, window by layer": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 11, "num_hidden_layers": 4, "layer_types": SLIDING[::-1] + SLIDING},
    ),
    "qwen3_moe, window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 6}),
    "llama, linear": ("llama", rope("linear", factor=3.0)),
    "nemotron, linear in part of a head": ("nemotron", rope("linear", factor=3.0, partial_rotary_factor=0.5)),
    "llama, dynamic": ("llama", rope("dynamic", factor=2.5)),
    "llama, llama3 of its own numbers": ("llama", rope("llama3", **LLAMA3)),
    "qwen2, yarn": ("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen3, yarn by the lengths": ("qwen3", rope("yarn", factor=None, original_max_position_embeddings=32)),
    "mistral, yarn with all": (
        "mistral",
        rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=0.5,
            mscale=1.2,
            mscale_all_dim=0.7,
            truncate=False,
        ),
    ),
    "gemma, yarn with its own factor": (
        "gemma",
        rope("yarn", factor=8.0, original_max_position_embeddings=16, attention_factor=1.3),
    ),
    "ministral3, queries that grow": (
        "ministral3",
        rope("yarn", factor=8.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.7, mscale=1.0, mscale_all_dim=1.0),
    ),
    "phi3, longrope": ("phi3", {**rope("longrope", **LONG), "original_max_position_embeddings": 64}),
    "phi3, longrope of long texts": ("phi3", {**rope("longrope", **LONG), "original_max_position_embeddings": 12}),
}


def open_model(folder: Path, precision: str | None = None) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), precision)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_gradients_and_folders(kind: str, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    model_type, changes = KINDS[kind]
    folder = families.write_model(tmp_path / "hf", model_type, **{"pad_token_id": 0, **changes})
    check_against_transformers(folder)
    export(resolve(folder), tmp_path / "megatron", "megatron", None)
    export(resolve(tmp_path / "megatron"), tmp_path / "back", "hf", None)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    ids = torch.arange(3, 60)
    assert torch.equal(families.logits(folder, ids), families.logits(tmp_path / "back", ids))
    same = open_model(folder).architecture
    assert open_model(tmp_path / "megatron").architecture == open_model(tmp_path / "back").architecture == same


def check_against_transformers(folder: Path) -> None:
    """Both responses' log-probs, and the gradient of the embedding, which passes through all that a layer computes."""
    pairs = small.random_pairs(2, seed=8, longest=40)
    lengths = [
        len(prompt) + len(response) for prompt, response in zip(pairs.prompts * 2, pairs.chosen + pairs.rejected, strict=True)
    ]
    assert 12 < min(lengths) <= max(lengths) <= 64
    ours, theirs = open_model(folder, "float32"), families.load(folder)
    logps_R = ours(pack_row(pairs.prompts, pairs.chosen, pairs.rejected))
    logps_R.square().sum().backward()
    expected = []
    for i in range(2):
        for response in (pairs.chosen[i], pairs.rejected[i]):
            logps = small.reference_logps(theirs, pairs.prompts[i], response)
            logps.square().sum().backward()
            expected.append(logps.detach())
    assert torch.allclose(logps_R, torch.cat(expected), rtol=1e-4, atol=1e-4)
    grad, wanted = ours.embedding.word_embeddings.weight.grad, theirs.get_input_embeddings().weight.grad
    assert (grad - wanted).norm() <= 1e-4 * wanted.norm()

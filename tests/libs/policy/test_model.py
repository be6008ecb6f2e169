"""The packed policy against plain transformers forwards of the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import small
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row

pytestmark = pytest.mark.usefixtures("megatron")


def open_float32(folder: Path):
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    return open_policy(resolve(folder), "float32")[0]


@pytest.mark.parametrize("fixture", ["llama", "untied_llama"])
def test_logits_equal_transformers(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    pairs = small.random_pairs(1, seed=3)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ours = open_float32(folder).all_logits(row)[: row.segments[0].rejected]
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    theirs = small.load_llama(folder)(ids[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-5


def test_llama3_rope_scaling_equals_transformers(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    folder = small.write_llama(tmp_path / "scaled", rope_parameters=rope)
    pairs = small.random_pairs(1, seed=4, longest=60)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ours = open_float32(folder).all_logits(row)[: row.segments[0].rejected]
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    assert (ours - small.load_llama(folder)(ids[None]).logits[0]).abs().max() <= 1e-5


def test_shared_prompt_logps_equal_two_separate_forwards(llama: Path) -> None:
    pairs = small.random_pairs(7, seed=5)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    logps_R = open_float32(llama)(row).detach()
    sums = torch.zeros(14).index_add(0, row.response_R, logps_R)
    model = small.load_llama(llama)
    for i in range(7):
        for side, response in enumerate((pairs.chosen[i], pairs.rejected[i])):
            expected = small.reference_logps(model, pairs.prompts[i], response).sum()
            assert sums[2 * i + side].item() == pytest.approx(expected.item(), rel=1e-4)


def test_packing_neighbours_do_not_matter(llama: Path) -> None:
    pairs, model = small.random_pairs(5, seed=6), open_float32(llama)
    together = model(pack_row(pairs.prompts, pairs.chosen, pairs.rejected)).detach()
    alone = [
        model(pack_row([p], [c], [r])).detach() for p, c, r in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_gradient_of_a_dpo_step_equals_autograd_through_transformers(llama: Path) -> None:
    from nemotron_dpo.checkpoint.hf_weights import rules
    from nemotron_dpo.objective.dpo import Objective, pair_losses, responses

    pairs, beta, sft = small.random_pairs(4, seed=7), 0.3, 0.1
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ours, theirs = open_float32(llama), small.load_llama(llama)
    ref_R = torch.linspace(-6, -2, len(row.targets_R))
    sides = responses(ours(row), ref_R, row.response_R, 4)
    pair_losses(Objective(beta=beta, sft_weight=sft), sides).loss.mean().backward()

    theirs.zero_grad()
    loss, start = torch.zeros(()), 0
    for i in range(4):
        rewards, sft_term = [], torch.zeros(())
        for response in (pairs.chosen[i], pairs.rejected[i]):
            logps = small.reference_logps(theirs, pairs.prompts[i], response)
            rewards.append((logps - ref_R[start : start + len(response)]).sum())
            sft_term = sft_term if len(rewards) == 2 else -logps.sum()
            start += len(response)
        loss = loss - torch.sigmoid(beta * (rewards[0] - rewards[1])).log() / 4 + sft * sft_term / 4
    loss.backward()

    from nemotron_dpo.policy import architecture

    shape, expected = architecture.from_hf(llama), dict(theirs.named_parameters())
    by_name = dict(ours.named_parameters())
    for rule in rules(shape):
        for layer in range(shape.num_layers if "{}" in rule.megatron else 1):
            grad = by_name[rule.megatron.format(layer)].grad
            merged = rule.merge(shape, [g for key in rule.hf if (g := expected[key.format(layer)].grad) is not None])
            assert grad is not None
            assert (grad - merged).norm() <= 1e-4 * merged.norm(), rule.megatron


@pytest.mark.parametrize(("max_length", "message"), [(129, "exceed the policy's 128 positions")])
def test_refuses_more_positions_than_the_policy_has(llama: Path, max_length: int, message: str) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    with pytest.raises(UserError, match=message):
        open_policy(resolve(llama), "float32", max_length=max_length)

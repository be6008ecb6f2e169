"""The packed policy against plain transformers forwards of the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import Cut, pack_row, parts_of_pairs
from support import families, small
from support.policy_rows import packed

pytestmark = pytest.mark.usefixtures("megatron")


def open_float32(folder: Path):
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    return open_policy(resolve(folder), "float32")


@pytest.mark.parametrize("fixture", ["llama", "untied_llama"])
def test_logits_equal_transformers(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    pairs = small.random_pairs(1, seed=3)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ours = open_float32(folder).all_logits(row)[: row.segments[0].rejected]
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    theirs = small.load_llama(folder)(ids[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-5


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


@pytest.mark.parametrize("at_once", [False, True])
def test_gradient_of_a_dpo_step_equals_autograd_through_transformers(llama: Path, at_once: bool) -> None:
    from nemotron_dpo.checkpoint.families import config, rules
    from nemotron_dpo.objective.inputs import loss_inputs
    from nemotron_dpo.objective.losses.dpo import Dpo
    from nemotron_dpo.objective.losses.sft import Sft
    from nemotron_dpo.objective.weighted_sum import weighted_sum
    from nemotron_dpo.policy.logprobs import slope_of

    pairs, beta, sft = small.random_pairs(4, seed=7), 0.3, 0.1
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ours, theirs = open_float32(llama), small.load_llama(llama)
    ref_R = torch.linspace(-6, -2, len(row.targets_R))

    objective = weighted_sum((1.0, Dpo(beta)), (sft, Sft()))

    def loss_of(logps_R: torch.Tensor) -> torch.Tensor:
        return objective.losses(loss_inputs(logps_R, ref_R, row.sums_of_responses)).loss.mean()

    loss_of(ours(row, slope=slope_of(loss_of) if at_once else None)).backward()

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

    shape, expected = config.read(llama), dict(theirs.named_parameters())
    by_name = dict(ours.named_parameters())
    for rule in rules(shape):
        for layer, kind in enumerate(shape.layers if "{}" in rule.megatron else [None]):
            grad = by_name[rule.megatron.format(layer)].grad
            merged = rule.merge(kind, [g for key in rule.hf if (g := expected[key.format(layer)].grad) is not None])
            assert grad is not None
            assert (grad - merged).norm() <= 1e-4 * merged.norm(), rule.megatron


def test_response_tokens_are_divided_at_the_ends_of_pairs() -> None:
    row = packed((9, 2, 2), (1, 3, 3), (5, 1, 1))
    assert parts_of_pairs(row, 12) == [slice(0, 12)]
    assert parts_of_pairs(row, 11) == [slice(0, 10), slice(10, 12)]
    assert parts_of_pairs(row, 9) == [slice(0, 4), slice(4, 12)]
    assert parts_of_pairs(row, 6) == [slice(0, 4), slice(4, 10), slice(10, 12)]
    assert parts_of_pairs(row, 5) is None
    assert parts_of_pairs(packed((3, 1, 1), cut=Cut(tokens_together=8)), 5) == [slice(0, 2)]
    assert parts_of_pairs(packed(), 5) == []


@pytest.mark.parametrize("model_type", sorted(families.FAMILIES))
def test_gradient_through_every_architecture_equals_transformers(model_type: str, tmp_path: Path) -> None:
    """The embedding's gradient passes through all that a layer computes, norms, router and experts included."""
    folder = families.write_model(tmp_path / "hf", model_type)
    pairs = small.random_pairs(1, seed=8)
    ours, theirs = open_float32(folder), families.load(folder)
    ours(pack_row(pairs.prompts, pairs.chosen, pairs.rejected)).square().sum().backward()
    for response in (pairs.chosen[0], pairs.rejected[0]):
        small.reference_logps(theirs, pairs.prompts[0], response).square().sum().backward()
    grad, expected = ours.embedding.word_embeddings.weight.grad, theirs.get_input_embeddings().weight.grad
    assert grad is not None
    assert (grad - expected).norm() <= 1e-4 * expected.norm()


def test_refuses_longer_sequences_than_the_policy_takes(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    folder = families.write_model(tmp_path / "hf", "mistral", sliding_window=64)
    open_policy(resolve(folder), "float32", max_length=128)
    with pytest.raises(UserError, match="exceed the policy's 128 positions"):
        open_policy(resolve(folder), "float32", max_length=129)

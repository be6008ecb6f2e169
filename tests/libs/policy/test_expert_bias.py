"""The bias by which routers of sigmoids pick experts: its precision, and how training moves it, against transformers' picks.

Legend: E experts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.load_balancing import LoadBalancing
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import Cut, pack_row
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from support import hybrids, small

pytestmark = pytest.mark.usefixtures("megatron")
PAIRS = small.random_pairs(4, seed=9)


def build(dtype: torch.dtype = torch.float32, recompute: Recompute | None = None) -> Any:
    from nemotron_dpo.policy.model import build_policy

    return build_policy(hybrids.architecture("E*E"), dtype, max_length=256, recompute=recompute)


def biases(model: Any) -> list[torch.Tensor]:
    return [tensor for name, tensor in hybrids.named(model).items() if name.endswith("expert_bias")]


def trainable(model: Any, rate: float) -> Any:
    from nemotron_dpo.policy.balanced_routers import move_biases
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy

    move_biases(model, rate)
    return TrainablePolicy(model, Optimization(lr=0.0, weight_decay=0.0))


def batches(per_row: int, cut: Cut | None = None) -> list[Any]:
    from nemotron_dpo.training.batches import PairBatch

    rows = []
    for start in range(0, 4, per_row):
        part = slice(start, start + per_row)
        rows.append(pack_row(PAIRS.prompts[part], PAIRS.chosen[part], PAIRS.rejected[part], cut or Cut()))
    return [PairBatch(row=row, ref_logps_R=None, pairs=tuple(range(row.num_pairs))) for row in rows]


def loss(batch: Any, logps_R: torch.Tensor) -> tuple[torch.Tensor, None]:
    return logps_R.sum(), None


def counted(model: Any) -> list[torch.Tensor]:
    """How many tokens of the eight sequences pick each expert of each layer in transformers."""
    counts = [torch.zeros(hybrids.ROUTER.num) for _ in range(2)]

    def count(into: torch.Tensor) -> Callable[..., None]:
        def hook(module: Any, given: Any, out: Any) -> None:
            into.add_(torch.bincount(out[2].flatten(), minlength=hybrids.ROUTER.num))

        return hook

    gates = [module for name, module in model.named_modules() if name.endswith("gate")]
    for gate, into in zip(gates, counts, strict=True):
        gate.register_forward_hook(count(into))
    for prompt, *sides in zip(PAIRS.prompts, PAIRS.chosen, PAIRS.rejected, strict=True):
        for side in sides:
            small.reference_logps(model, prompt, side)
    return counts


@pytest.mark.slow
def test_a_step_moves_biases_by_the_counts_of_sequences_however_they_are_packed() -> None:
    theirs = hybrids.theirs("E*E")
    before = [tensor.clone() for name, tensor in theirs.named_buffers() if name.endswith("correction_bias")]
    due = [bias + 0.125 * torch.sign(n.mean() - n) for bias, n in zip(before, counted(theirs), strict=True)]
    cases = [(4, None, None), (1, None, Recompute()), (2, Cut(tokens_together=16), None)]
    for per_row, cut, recompute in cases:
        model = build(recompute=recompute)
        hybrids.fill(model, theirs.state_dict())
        policy = trainable(model, 0.125)
        policy.evaluate(batches(per_row, cut), loss)
        assert all(torch.equal(a, b) for a, b in zip(biases(model), before, strict=True))
        policy.accumulate(batches(per_row, cut), loss)
        policy.step(0.0)
        assert all(torch.equal(a, b) for a, b in zip(biases(model), due, strict=True))


@pytest.mark.slow
def test_without_a_rate_and_under_adapters_biases_stay() -> None:
    from nemotron_dpo.policy.lora import Adapted, Base, adapt
    from nemotron_dpo.policy.lora_targets import Lora

    state = hybrids.theirs("E*E").state_dict()
    for lora in (False, True):
        model = build()
        hybrids.fill(model, state)
        before = [bias.clone() for bias in biases(model)]
        if lora:
            adapt(model, Adapted(Lora(dim=2, target_modules=("linear_qkv",)), Base("", "")))
            from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy

            policy = TrainablePolicy(model, Optimization(lr=0.0))
        else:
            policy = trainable(model, 0.0)
        policy.accumulate(batches(2), loss)
        policy.step(0.0)
        assert all(torch.equal(a, b) for a, b in zip(biases(model), before, strict=True))


def test_a_bfloat16_policy_keeps_biases_and_counts_in_float32() -> None:
    from nemotron_dpo.policy.routers import routers

    model = build(torch.bfloat16)
    value = torch.tensor([0.1, 0.2, 1 / 3, -1e-3])
    for router in routers(model):
        router.get_buffer("expert_bias").copy_(value)
        assert router.get_buffer("local_tokens_per_expert").dtype == torch.float32
    policy = trainable(model, 1e-3)
    policy.accumulate(batches(4), loss)
    policy.step(0.0)
    for bias in biases(model):
        assert bias.dtype == torch.float32
        assert ((bias - value).abs() - 1e-3).abs().max() <= 1e-6


def test_the_auxiliary_loss_of_sigmoids_is_megatrons() -> None:
    """By its formula, from what enters each router: probabilities sum to one, picks are those without a bias."""
    from nemotron_dpo.policy.balanced_routers import balance
    from nemotron_dpo.policy.routers import routers

    model, seen = build(), list[torch.Tensor]()
    hybrids.fill(model, hybrids.theirs("E*E").state_dict())
    for router in routers(model):
        router.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 0] @ module.get_parameter("weight").t()))
    balance(model, LoadBalancing("aux_loss", 0.1))
    policy = trainable(model, 0.0)
    policy.accumulate(batches(1)[:1], loss)
    weights = torch.ones(len(seen[0]))
    weights[: len(PAIRS.prompts[0])] = 2
    losses = []
    for logits in seen:
        scores = torch.sigmoid(logits.detach())
        picks = torch.zeros_like(scores).scatter(1, scores.topk(2).indices, 1.0)
        means = weights @ (scores / scores.sum(1, keepdim=True)) / weights.sum()
        losses.append(4 * (weights @ picks / (2 * weights.sum()) * means).sum().item())
    found = policy.router_loss(1)
    assert found.value == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_routers_that_megatron_core_computes_otherwise_are_refused() -> None:
    cases = [
        (Router(4, 1), "picks one expert and renormalizes"),
        (Router(4, 2, renormalize=False, score="sigmoid"), "sigmoids that does not renormalize"),
        (Router(4, 2, expert_bias=True), "an expert bias without sigmoids"),
        (Router(8, 2, score="sigmoid", num_groups=4, picked_groups=2), "2 experts of 2 of 4 groups is not supported"),
    ]
    for router, message in cases:
        with pytest.raises(UserError, match=message):
            Experts(router, Dense(24)).config()
    assert (
        Experts(Router(8, 4, score="sigmoid", num_groups=4, picked_groups=2), Dense(24)).config()["moe_router_num_groups"] == 4
    )
    assert Experts(Router(8, 1, renormalize=False, score="sigmoid"), Dense(24)).config()["moe_router_topk"] == 1

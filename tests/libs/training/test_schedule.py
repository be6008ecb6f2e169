"""Learning rates by hand, and against torch's own schedulers driven by hand."""

from __future__ import annotations

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.training import schedule


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]),
        # 0.5 * (1 + cos(pi * i / 4)) for i = 1..4
        ("cosine", [0.5, 1.0, 0.85355339, 0.5, 0.14644661, 0.0]),
    ],
)
def test_named_shapes(shape: str, expected: list[float]) -> None:
    assert schedule.named(shape, 1.0, 6, warmup_steps=2) == pytest.approx(expected, abs=1e-7)


def test_decay_ends_at_min_lr() -> None:
    assert schedule.named("cosine", 1.0, 4, min_lr=0.1)[-1] == pytest.approx(0.1)


def test_nemo_rl_warmup_then_constant() -> None:
    chain = [
        ("LinearLR", {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 3}),
        ("ConstantLR", {"factor": 1.0, "total_iters": 10}),
    ]
    # LinearLR: 0.1, 0.4, 0.7, and at the milestone the next one takes over with 1.0
    assert schedule.from_torch(1.0, 5, chain, [3]) == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0])


def test_a_single_torch_scheduler() -> None:
    assert schedule.from_torch(1.0, 3, [("StepLR", {"step_size": 1, "gamma": 0.5})], []) == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([("NoSuchLR", {})], "has no NoSuchLR"),
        ([("StepLR", {"stride": 1})], "StepLR: .*stride"),
    ],
)
def test_bad_schedulers_are_one_line(chain: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule.from_torch(1.0, 3, chain, [])


def test_rates_are_those_of_a_torch_optimizer_stepped_by_hand() -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert schedule.from_torch(0.3, 7, [("CosineAnnealingLR", {"T_max": 7})], []) == pytest.approx(expected)

"""Learning rates by hand, against transformers' schedules, and against torch's own schedulers driven by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.training import schedule


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # the step after the warm-up has progress 0, the last one 3 / 4
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        # 0.5 * (1 + cos(pi * i / 4)) for i = 0..3
        ("cosine", [0.5, 1.0, 1.0, 0.85355339, 0.5, 0.14644661]),
    ],
)
def test_named_shapes(shape: str, expected: list[float]) -> None:
    assert schedule.named(shape, 1.0, 6, warmup_steps=2) == pytest.approx(expected, abs=1e-7)


def test_one_and_two_steps() -> None:
    for shape, expected in (("cosine", [1e-3, 5e-4]), ("linear", [1e-3, 5e-4]), ("constant", [1e-3, 1e-3])):
        assert schedule.named(shape, 1e-3, 1) == [1e-3]
        assert schedule.named(shape, 1e-3, 2) == pytest.approx(expected)


def test_decay_goes_towards_min_lr() -> None:
    # 0.1 + 0.9 * 0.5 * (1 + cos(3 pi / 4)), and 0.1 + 0.9 / 4
    assert schedule.named("cosine", 1.0, 4, min_lr=0.1)[-1] == pytest.approx(0.23180195)
    assert schedule.named("linear", 1.0, 4, min_lr=0.1)[-1] == pytest.approx(0.325)


def test_megatrons_own_rates() -> None:
    """Against megatron-core's scheduler, stepped as its training loop does; a step reads the rate before it."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    for name, warmup, init, floor, end in (
        ("constant", 1, 1e-8, 0.0, None),
        ("constant", 0, 0.0, 0.0, None),
        ("constant", 10, 1e-11, 0.0, 32),
        ("cosine", 3, 0.0, 1e-7, None),
        ("linear", 2, 1e-7, 1e-7, 7),
        ("cosine", 0, 0.0, 0.0, 5),
    ):
        optimizer = _optimizer(1e-6)
        theirs = OptimizerParamScheduler(
            cast(Any, optimizer), init, 1e-6, floor, warmup, end or 12, name, 0.1, 0.1, 12, "constant"
        )
        expected = []
        for _ in range(12):
            expected.append(optimizer.param_groups[0]["lr"])
            theirs.step(1)
        rates = schedule.rates(name, 1e-6, 12, warmup_steps=warmup, min_lr=floor, warmup_init=init, decay_steps=end)
        assert rates == pytest.approx(expected, rel=1e-12), name


def test_a_decay_of_megatron_that_is_all_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match="is 6, and the decay ends at step 6"):
        schedule.rates("cosine", 1e-6, 6, warmup_steps=6, warmup_init=0.0)


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=lr)


def _driven(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The rate of every step where the scheduler is stepped after the optimizer, as training loops do."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_decay_is_that_of_transformers() -> None:
    """From the first step after the warm-up on; in the warm-up ours is one step ahead, for theirs begins with 0."""
    import transformers

    theirs = {
        "cosine": (transformers.get_cosine_schedule_with_warmup, {}),
        "linear": (transformers.get_linear_schedule_with_warmup, {}),
        "cosine to min_lr": (transformers.get_cosine_with_min_lr_schedule_with_warmup, {"min_lr": 2e-5}),
    }
    for case, (make, options) in theirs.items():
        for warmup, steps in ((0, 1), (0, 2), (0, 10), (1, 2), (3, 10), (9, 10), (50, 500)):
            optimizer = _optimizer(1e-3)
            expected = _driven(optimizer, make(optimizer, warmup, steps, **options), steps)
            ours = schedule.named(case.split()[0], 1e-3, steps, warmup_steps=warmup, **options)
            assert ours[warmup:] == pytest.approx(expected[warmup:], rel=1e-9), (case, warmup, steps)
            if case != "cosine to min_lr":  # whose warm-up starts at min_lr
                assert ours[:warmup] == pytest.approx(expected[1 : warmup + 1], rel=1e-9), (case, warmup, steps)
            assert min(ours) > 0, (case, warmup, steps)


def test_nemo_rl_warmup_then_constant() -> None:
    chain = [
        ("LinearLR", {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 3}),
        ("ConstantLR", {"factor": 1.0, "total_iters": 10}),
    ]
    # LinearLR: 0.1, 0.4, 0.7, and at the milestone the next one takes over with 1.0
    assert schedule.from_torch(1.0, 5, chain, [3]) == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0])


def test_a_single_torch_scheduler() -> None:
    assert schedule.from_torch(1.0, 3, [("StepLR", {"step_size": 1, "gamma": 0.5})], []) == [1.0, 0.5, 0.25]


CHAINS = [
    ([("CosineAnnealingLR", {"T_max": 7})], []),
    ([("PolynomialLR", {"total_iters": 5, "power": 2.0})], []),
    ([("OneCycleLR", {"max_lr": 0.5, "total_steps": 9, "cycle_momentum": False})], []),
    ([("LinearLR", {"start_factor": 0.25, "total_iters": 2}), ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01})], [2]),
    ([("ConstantLR", {"factor": 0.5, "total_iters": 9}), ("LinearLR", {}), ("ExponentialLR", {"gamma": 0.9})], [2, 5]),
]


def test_torch_chains_are_torchs_own_to_the_last_bit() -> None:
    for chain, milestones in CHAINS:
        optimizer = _optimizer(0.3)
        made = [getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments) for name, arguments in chain]
        whole = torch.optim.lr_scheduler.SequentialLR(optimizer, made, milestones) if milestones else made[0]
        assert schedule.from_torch(0.3, 9, chain, milestones) == _driven(optimizer, whole, 9), chain


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("NoSuchLR", {}, "has no NoSuchLR"),
        ("Optimizer", {}, "has no Optimizer"),  # a name that the module only imports
        ("StepLR", {"stride": 1}, "StepLR: .*stride"),
        ("StepLR", {"step_size": 0}, "StepLR: integer modulo by zero"),
        ("StepLR", {"step_size": 1, "gamma": -1.0}, "StepLR: the learning rate of step 2 is -1.0"),
        ("LinearLR", {"start_factor": float("nan")}, "LinearLR: the learning rate of step 1 is nan"),
        ("ConstantLR", {"factor": 3.0}, "ConstantLR: Constant multiplicative factor"),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 2, "cycle_momentum": False}, "OneCycleLR: Tried to step 3 times"),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 9}, "would also change AdamW's betas"),
        ("ReduceLROnPlateau", {}, "ReduceLROnPlateau is not built"),
        ("LambdaLR", {"lr_lambda": 1}, "LambdaLR is not built"),
    ],
)
def test_bad_schedulers_are_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule.from_torch(1.0, 3, [(name, arguments)], [])


def test_what_a_longer_run_has_lived_through_is_said_where_it_is_another_thing() -> None:
    """A cosine of 4 steps is at cos(3/4 pi) in its last; by hand, 0.5 * (1 + cos(135 deg)) = 0.1464, of 8 steps 0.6913."""
    short, longer = schedule.named("cosine", 1.0, 4), schedule.named("cosine", 1.0, 8)
    said = (
        "the learning rate follows the length of the run: so far it was that of 4 steps (step 4: 0.146), from here on it is that "
        "of 8 steps (step 4: 0.691): a run of 8 steps from its first would end elsewhere"
    )
    assert schedule.other_rates(short, longer, 4) == said
    for name, before, now, done in [
        ("nothing done", short, longer, 0),
        ("as long", short, schedule.named("cosine", 1.0, 4), 3),
        ("constant", schedule.named("constant", 1.0, 4, warmup_steps=2), schedule.named("constant", 1.0, 8, warmup_steps=2), 4),
        (
            "in the warm-up",
            schedule.named("cosine", 1.0, 8, warmup_steps=4),
            schedule.named("cosine", 1.0, 16, warmup_steps=4),
            4,
        ),
        ("a decay of its own", _decayed(4), _decayed(8), 4),
    ]:
        assert schedule.other_rates(before, now, done) is None, name


def _decayed(total: int) -> list[float]:
    return schedule.from_megatron("cosine", 1.0, total, warmup_steps=1, init=0.0, min_lr=0.0, decay_steps=4)

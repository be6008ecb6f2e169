"""What is remarked on once the number of pairs is known; each figure by hand."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.training import remarks
from nemotron_dpo.training.settings import BatchSettings, LoopSettings, Packing, UpdateSettings, ValidationSettings


def _settings(steps: int = 6, *, shuffle: Any = True, save_period: Any = 50, **validation: Any) -> LoopSettings:
    batches, updates = BatchSettings(8, Packing(None), shuffle=shuffle), UpdateSettings([1.0] * steps)
    return LoopSettings(Dpo(0.1), batches, updates, ValidationSettings(**validation), save_period)


def test_schedules():
    idle = "where nothing changes"
    for rates, max_steps, warmup, milestones, expected in (
        ([1.0] * 20, 500, 19, (), []),
        ([1.0] * 20, 500, 20, (), ["policy.scheduler.warmup_steps is 20, and the data give 20 steps: all of it is warm-up"]),
        ([1.0] * 20, 20, 50, (), []),  # said before the data were read
        ([1.0, 0.0, 1.0], 3, 0, (1,), [f"policy.scheduler: the rate is 0 in 1 of 3 steps, {idle} (2)"]),
        ([0.0] * 7, 7, 0, (), [f"policy.scheduler: the rate is 0 in 7 of 7 steps, {idle} (1, 2, 3, 4, 5, ...)"]),
        (
            [0.0],
            9,
            1,
            (),
            [
                "policy.scheduler.warmup_steps is 1, and the data give 1 step: all of it is warm-up",
                f"policy.scheduler: the rate is 0 in 1 of 1 step, {idle} (1)",
            ],
        ),
        ([1.0] * 3, 3, 0, (2, 3, 9), ["policy.scheduler: the run ends after 3 steps, before milestone 3, 9"]),
    ):
        assert list(remarks.on_schedule(rates, max_steps, warmup, milestones)) == expected


def test_pairs_that_fill_no_batch():
    left = "3 of 27 pairs fill no batch of 8 and are left out of an epoch"
    for steps, num_pairs, shuffle, expected in (
        (3, 24, True, []),
        (2, 27, True, []),  # not even a whole epoch
        (3, 27, True, [f"{left}, others each time"]),
        (3, 27, False, [f"{left}, always the last ones"]),
    ):
        assert list(remarks.on_batches(_settings(steps, shuffle=shuffle), num_pairs)) == expected


def test_validation_sets():
    small = "validation set hard has 30 pairs, and dpo.val_batches x dpo.val_global_batch_size is 32: all of them are taken"
    late = "dpo.val_period is 7, and the run has 6 steps: none is validated"
    for changes, is_asked, expected in (
        ({"batches": 4}, True, [small]),
        ({"batches": 4}, False, []),
        ({"batches": 0}, True, []),  # all
        ({"period": 7, "at_end": False}, False, [late]),
        ({"period": 6, "at_end": False}, False, []),
        ({"period": 7, "at_end": True}, False, []),
    ):
        sets = {"default": 32, "hard": 30}
        assert list(remarks.on_validation(_settings(**changes), sets, is_asked=is_asked)) == expected
    assert not list(remarks.on_validation(_settings(period=7, at_end=False), {}, is_asked=True))


def test_checkpoints_that_nothing_ranks():
    line = "nothing measures val:x, for want of validation: of 4 checkpoints the newest 3 are kept"
    for steps, keep, name, ranked_by, expected in (
        (7, 3, "val:x", None, [line]),  # after steps 2, 4, 6 and 7
        (6, 3, "val:x", None, []),
        (7, None, "val:x", None, []),
        (7, 3, None, None, []),
        (7, 3, "val:x", "val:x", []),
    ):
        assert list(remarks.on_retention(_settings(steps, save_period=2), keep, name, ranked_by)) == expected


def test_pairs_on_both_sides():
    said = list(remarks.on_overlap({"a": 0, "b": 3, "c": 1}, {"a": 8, "b": 8, "c": 1}))
    assert said == [
        "3 of the 8 pairs of validation set b are trained on as well: what it measures of them is no test",
        "1 of the 1 pair of validation set c are trained on as well: what it measures of them is no test",
    ]

"""What is said of a trouble, and how often; and what a run that is resumed says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from nemotron_dpo.training.guards import findings
from nemotron_dpo.training.guards.blamed import worst
from nemotron_dpo.training.guards.findings import Finding
from nemotron_dpo.training.guards.remedies import BETA, LR, Tuning, remedy
from nemotron_dpo.training.guards.watch import Watch, WatchSettings
from nemotron_dpo.training.record import SAVING, Record

LN2 = math.log(2)
TUNING = Tuning(5e-7, [5e-7] * 100, 0.05)


def watch(**changes: Any) -> Watch:
    return Watch(WatchSettings(changes.pop("tuning", TUNING), starts_exactly=True, **changes))


def step(number: int, loss: float, norm: float = 1.0) -> Record:
    values = {"train/loss": loss, "train/grad_norm": norm, "train/num_valid_samples": 16.0, "train/accuracy": 0.5}
    return Record(number, "train", values)


def validation(number: int, loss: float, name: str = "validation-default") -> Record:
    return Record(number, name, {f"{name}/loss": loss, f"{name}/num_valid_samples": 64.0})


def said(one: Watch, records: Sequence[Record]) -> list[tuple[int, str, int]]:
    """Step, kind and times of everything that is said of `records`."""
    alarms = [alarm for record in records for alarm in one.take(record)]
    return [(alarm.finding.step, alarm.finding.kind, alarm.times) for alarm in alarms]


def losses(values: Mapping[int, float], count: int) -> list[Record]:
    return [step(number, values.get(number, LN2)) for number in range(1, count + 1)]


def test_a_trouble_that_stays_is_said_once_and_once_more_where_it_is_much_worse() -> None:
    """At 1.0 it is (1 - ln 2) / 0.0693 = 4.4 above its bound; 3 times that is 1.6137."""
    stays = [step(number, LN2 if number == 1 else 1.0) for number in range(1, 101)]
    assert said(watch(), stays) == [(9, findings.LOSS, 1)]
    steady = watch()
    assert said(steady, stays) == [(9, findings.LOSS, 1)]
    assert said(steady, [step(number, 1.61) for number in range(101, 131)]) == []
    assert said(steady, [step(number, 1.7) for number in range(131, 161)]) == [(131, findings.LOSS, 1)]


def test_of_how_long_a_checkpoint_took_nothing_is_said() -> None:
    plain, saving = watch(), watch()
    records = losses({}, 30)
    between = [one for record in records for one in (record, Record(record.step, SAVING, {"timing/train/checkpointing": 0.1}))]
    assert said(plain, records) == said(saving, between) == []
    assert plain.to_plain() == saving.to_plain()


def test_a_trouble_that_comes_back_is_said_the_2nd_4th_and_8th_time() -> None:
    """A spike every 20 steps in 400 steps: 19 of them after the first window."""
    run = [step(number, LN2, 100.0 if number % 20 == 0 else 1.0) for number in range(1, 401)]
    assert said(watch(), run) == [(20, "gradient_spike", 1), (40, "gradient_spike", 2), (80, "gradient_spike", 4),
                                  (160, "gradient_spike", 8), (320, "gradient_spike", 16)]  # fmt: skip


def test_a_validation_set_that_stays_turned_is_said_once_and_each_set_alone() -> None:
    one = watch()
    turned = [validation(50 * number, loss) for number, loss in enumerate((LN2, 0.6, 0.65, 0.65, 0.66, 0.65))]
    assert said(one, turned) == [(150, findings.VALIDATION, 1)]
    other = [validation(50 * number, loss, "validation-b") for number, loss in enumerate((LN2, 0.6, 0.66, 0.66))]
    assert said(one, other) == [(150, findings.VALIDATION, 1)]
    assert said(one, [validation(300, 0.55), validation(350, 0.62), validation(400, 0.62)]) == [(400, findings.VALIDATION, 2)]


@pytest.mark.parametrize("cut", [3, 9, 12, 20, 33, 60])
def test_a_resumed_run_says_what_is_left_to_say(cut: int) -> None:
    run = [
        step(number, 1.0 if 10 < number < 30 else LN2 + number / 40, 50.0 if number in (20, 55) else 1.0)
        for number in range(1, 81)
    ]
    run.insert(40, validation(40, 0.5))
    run.insert(60, validation(59, 0.7))
    run[0:0] = [validation(0, math.nan, "validation-b"), validation(0, math.nan, "validation-b")]
    run.insert(30, validation(28, 0.4, "validation-b"))
    run.insert(62, validation(59, math.nan, "validation-b"))
    whole, first = watch(), watch()
    everything = said(whole, run)
    assert len(everything) > 3
    before = said(first, run[:cut])
    again = watch()
    again.go_on(orjson.loads(orjson.dumps(first.to_plain())))
    assert before + said(again, run[cut:]) == everything
    assert again.to_plain() == whole.to_plain()
    fresh = watch()
    fresh.go_on({})  # of a checkpoint from before there were guards
    assert fresh.to_plain() == watch().to_plain()


def test_stop_ends_a_run_for_every_finding_but_a_spike_that_is_clipped() -> None:
    diverged = losses(dict.fromkeys(range(2, 40), 1.0), 20)
    for stops in (True, False):
        one = watch(stops=stops)
        said(one, diverged)
        assert (one.fatal is not None) == stops
    spike = [step(number, LN2, 100.0 if number == 20 else 1.0) for number in range(1, 21)]
    for clips in (True, False):
        one = watch(stops=True, tuning=Tuning(5e-7, [5e-7] * 100, 0.05, clips=clips))
        assert said(one, spike)
        assert (one.fatal is None) == clips


def test_a_trouble_that_was_only_warned_of_ends_the_run_that_goes_on_with_stop() -> None:
    diverged = losses(dict.fromkeys(range(2, 40), 1.0), 20)
    warned, stopped = watch(), watch(stops=True)
    said(warned, diverged)
    stopped.go_on(warned.to_plain())
    assert said(stopped, [step(21, 1.0)]) == []
    assert stopped.fatal is not None
    assert stopped.fatal.step == 21


@pytest.mark.parametrize(
    ("saved", "validations", "kept"),
    [
        # a finding in step 31 is of steps 24 to 31; the policy of step 22 is the last that was measured before
        pytest.param([10, 20, 30], [], {20, 30}, id="a save every ten steps"),
        pytest.param(range(1, 31), [], {22, 23}, id="one every step: 23 is good one step later"),
        pytest.param([1, 8, 22, 26, 30], [], {22, 26}, id="what was left of them"),
        pytest.param([25, 30], [], {25}, id="none is old enough"),
        pytest.param([5, 10, 20, 30], [validation(10, 0.5), validation(30, 0.52)], {10, 20, 30}, id="the best validation"),
        pytest.param([5, 20, 30], [validation(10, 0.5), validation(30, 0.52)], {5, 20, 30}, id="the newest before it"),
        pytest.param([], [], set(), id="none"),
    ],
)
def test_the_checkpoints_that_a_later_finding_may_name_stay(
    saved: Sequence[int], validations: list[Record], kept: set[int]
) -> None:
    one = watch(stops=True)
    assert one.needed(saved) == set()
    said(one, [*losses({}, 30), *validations])
    assert one.needed(saved) == kept
    warns = watch()
    said(warns, losses({}, 30))
    assert warns.needed(saved) == set()


def test_a_checkpoint_a_step_leaves_one_that_is_good_at_any_time() -> None:
    """With no more than three on disk, and none older than twice the window."""
    one, saved = watch(stops=True), []
    for record in losses({}, 100):
        one.take(record)
        saved = sorted({record.step, *one.needed([*saved, record.step])})
        assert len(saved) <= 3
        good = [step for step in saved if step <= record.step - 8]
        assert record.step <= 8 or good[-1] >= record.step - 17


OTHER = Tuning(1e-6, [1e-6])


@pytest.mark.parametrize(
    ("kind", "level", "good", "tuning", "tried"),
    [
        (findings.LOSS, 1.5, 10, TUNING, {BETA: ("0.1", "0.05"), LR: ("1.7e-07", "5e-07")}),
        (findings.LOSS, 9.0, 10, TUNING, {BETA: ("0.1", "0.05"), LR: ("5e-08", "5e-07")}),
        # in the warm-up: the rate that the last good step had
        (
            findings.LOSS,
            1.5,
            2,
            replace(TUNING, learning_rates=[1e-8, 2e-8, 5e-7]),
            {BETA: ("0.1", "0.05"), LR: ("2e-08", "5e-07")},
        ),
        (findings.KL_EXPLOSION, 1.5, 9, replace(OTHER, beta=1e-4), {BETA: ("0.1", "0.0001"), LR: ("3.3e-07", "1e-06")}),
        (findings.CHOSEN, 1.5, 9, replace(OTHER, beta=0.2), {BETA: ("0.3", "0.2"), LR: ("3.3e-07", "1e-06")}),
        (findings.LOSS, 1.5, 9, replace(OTHER, beta=0.5), {LR: ("3.3e-07", "1e-06")}),  # above the manifest's range
        # of averaged log-ratios, for which that range is of another size
        (findings.LOSS, 1.5, 9, replace(OTHER, beta=0.5, sums=False), {BETA: ("1", "0.5"), LR: ("3.3e-07", "1e-06")}),
        (findings.LOSS, 1.5, 9, OTHER, {LR: ("3.3e-07", "1e-06")}),
        (findings.KL_COLLAPSE, 1.5, 9, TUNING, {LR: ("1.7e-07", "5e-07")}),
        (findings.GRADIENT, 1.5, 9, TUNING, {BETA: ("0.1", "0.05"), LR: ("1.7e-07", "5e-07")}),
        (
            findings.GRADIENT,
            1.5,
            9,
            replace(TUNING, clips=False),
            {"policy.max_grad_norm": ("1", ""), LR: ("1.7e-07", "5e-07")},
        ),
        (findings.VALIDATION, 1.5, 50, TUNING, {"dpo.max_num_steps": ("50", ""), LR: ("1.7e-07", "5e-07")}),
        (findings.VALIDATION, 1.5, 0, TUNING, {BETA: ("0.1", "0.05"), LR: ("1.7e-07", "5e-07")}),
    ],
)
def test_remedies_have_the_values_to_try(
    kind: str, level: float, good: int, tuning: Tuning, tried: Mapping[str, tuple[str, str]]
) -> None:
    words = [f"{key}={value}{f' (it is {now})' if now else ''}" for key, (value, now) in tried.items()]
    assert remedy(Finding(kind, 60, "", level, good), tuning, level) == f"try {', or '.join(words)}"


def pairs(**by_name: list[float]) -> Any:
    """Four pairs, rows 3 2 1 0 of the data, whose lines are 10 11 12 13."""
    lengths = SimpleNamespace(lengths=np.array([4, 2, 1, 5]))
    names = ["a.jsonl", "a.jsonl", "", "b.jsonl"]
    data = SimpleNamespace(
        pair_ids=[bytes([row] * 16) for row in range(4)],
        source_lines=np.array([10, 11, 12, 13]),
        file=names.__getitem__,
        chosen=lengths,
        rejected=lengths,
    )
    return SimpleNamespace(data=data, rows=[3, 2, 1, 0], by_name={name: np.array(v, np.float32) for name, v in by_name.items()})


@pytest.mark.parametrize(
    ("by", "compares", "lines"),
    [
        ("loss", True, [11, 12, 13]),
        ("margin", True, [11, 13, 10]),
        ("log_ratio", True, [12, 11, 13]),  # a token: 1.6, 5, 2 and 0.5
        ("chosen", True, [12, 11, 10]),  # 1, -5, -1 and -0.5
        ("loss", False, [12, 11, 10]),
    ],
)
def test_the_pairs_that_are_named(by: str, compares: bool, lines: list[int]) -> None:
    made = pairs(
        chosen_logp=[-50, -50, -50, -50],
        rejected_logp=[-50, -50, -50, -50],
        chosen_log_ratio=[5, -5, -2, -2],
        rejected_log_ratio=[-8, 1, -4, 0],
        margin=[1, 3, -2, 2],
        loss=[0.1, 0.2, math.nan, 0.05],
    )
    assert [one.line for one in worst(made, by, compares=compares)] == lines


def test_a_pair_is_named_by_line_source_id_and_what_was_measured() -> None:
    made = pairs(chosen_logp=[-1, -2, -3, -4], rejected_logp=[-2, -2, -2, -2], loss=[4, 3, 2, 1])
    (first, second, _) = worst(made, "loss", compares=True)
    assert str(first) == "line 13 of b.jsonl (pair 030303030303: loss 4, chosen_logp -1, rejected_logp -2)"
    assert str(second) == "line 12 (pair 020202020202: loss 3, chosen_logp -2, rejected_logp -2)"
    assert worst(None, "loss", compares=True) == []

"""Each detection by a table of made-up runs: what must be found, and what healthy runs look like that must not be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import orjson
import pytest

from nemotron_dpo.training.guards import detections, findings
from nemotron_dpo.training.guards.findings import Finding
from nemotron_dpo.training.guards.history import WINDOW, History, Trend, Validated
from nemotron_dpo.training.guards.readings import Reading, Side

LN2 = math.log(2)


def steps(
    count: int,
    loss: Callable[[int], float] = lambda step: LN2,
    norm: Callable[[int], float] = lambda step: 1.0,
    accuracy: Callable[[int], float] | None = None,
    chosen: Callable[[int], float] | None = None,
    rejected: Callable[[int], float] | None = None,
    num_tokens: float = 100.0,
    pairs: int = 16,
    scored: bool = True,
    loss_error: float | None = None,
) -> list[Reading]:
    """A run of so many steps; functions give the values of each, sides in nats a token."""
    return [
        Reading(
            step,
            loss(step),
            norm(step),
            pairs,
            loss_error,
            accuracy(step) if accuracy else None,
            Side(chosen(step), num_tokens) if chosen else None,
            Side(rejected(step), num_tokens) if rejected else None,
            scored,
        )
        for step in range(1, count + 1)
    ]


def found(readings: Iterable[Reading], *, starts_exactly: bool = True) -> list[Finding]:
    """What is found in each step of a run."""
    history, all_of_it = History(), []
    for one in readings:
        history = history.after(one)
        all_of_it += detections.of_step(history, starts_exactly=starts_exactly)
    return all_of_it


def jagged(size: float) -> Callable[[int], float]:
    """Noise that goes up and down by `size`, with no trend over any even number of steps."""
    return lambda step: size if step % 2 else -size


@pytest.mark.parametrize(
    ("start", "exact", "rest", "first_seen"),
    [
        # 0.7 -> 0.9: mean of k new and 8 - k old steps must exceed 0.7 + max(0.07, 3 errors)
        pytest.param(LN2, True, lambda step: 1.0, 9, id="all steps are worse than ln 2"),
        pytest.param(LN2, True, lambda step: LN2 + 0.06, None, id="by less than a tenth"),
        pytest.param(LN2, True, lambda step: LN2 + 0.1 + jagged(0.3)(step), None, id="by less than its noise"),
        pytest.param(LN2, True, lambda step: LN2 - 0.02 * step, None, id="it falls"),
        pytest.param(25.0, True, lambda step: 27.4, None, id="one that starts at 25 may rise by 2.5"),
        pytest.param(25.0, True, lambda step: 30.0, 9, id="one that starts at 25"),
        pytest.param(
            2.5, False, lambda step: 2.5 + jagged(0.3)(step), None, id="noisy batches about a start that is one of them"
        ),
        pytest.param(2.0, False, lambda step: 2.5 + jagged(0.3)(step), None, id="a start that was an easy batch"),
        pytest.param(2.5, False, lambda step: 2.5 + step, 9, id="it rises from a start that is not known beforehand"),
        pytest.param(0.0, True, lambda step: 0.01, 9, id="one that starts at nothing"),
        pytest.param(-3.0, False, lambda step: -2.9, None, id="a loss below 0 that hardly rises"),
        pytest.param(-3.0, False, lambda step: -1.0, 9, id="a loss below 0 that rises"),
    ],
)
def test_a_loss_above_its_start(start: float, exact: bool, rest: Callable[[int], float], first_seen: int | None) -> None:
    run = steps(40, lambda step: start if step == 1 else rest(step))
    seen = [one.step for one in found(run, starts_exactly=exact) if one.kind == findings.LOSS]
    assert (seen[0] if seen else None) == first_seen


def test_a_late_rise_is_seen_in_the_window_and_names_its_numbers() -> None:
    """From 0.5 to 1.3 at step 21: the mean of a window is 0.5 + 0.1 k, above ln 2 + 0.0693 from k = 3 on, were it not for noise.

    The jump itself is the scatter then: sqrt(0.8^2 / 7 / 2) = 0.2138, 3 errors of the mean 0.2268. So k = 5: 1.0 > 0.9199.
    """
    run = steps(30, lambda step: LN2 if step == 1 else 0.5 if step <= 20 else 1.3)
    first = next(one for one in found(run) if one.kind == findings.LOSS)
    assert (first.step, first.good_step) == (25, 16)
    assert first.seen == "the loss is above its start: 1 in steps 18 to 25, 0.6931 in step 1"
    assert first.level == pytest.approx((1.0 - LN2) / (3 * 0.8 / math.sqrt(14) / math.sqrt(8)))


def test_a_start_that_is_one_batch_is_also_compared_by_its_window() -> None:
    """Step 1 was a hard batch: 4.0 among 2.5. At 3.2 the loss is above its first window, not above its first step."""
    run = steps(40, lambda step: 4.0 if step == 1 else 2.5 if step <= 20 else 3.2)
    first = next(one for one in found(run, starts_exactly=False) if one.kind == findings.LOSS)
    assert "2.688 in steps 1 to 8" in first.seen


@pytest.mark.parametrize(
    ("chosen", "rejected", "num_tokens", "kinds"),
    [
        pytest.param(0.05, -0.4, 200, set(), id="a long run of DPO"),
        pytest.param(-0.5, -1.0, 200, set(), id="both sides fell, as they do"),
        pytest.param(0.5, -2.5, 100, set(), id="rejected responses became improbable, as they are to"),
        pytest.param(0.5, -6.5, 100, {findings.KL_EXPLOSION}, id="a token of theirs is 600 times less probable"),
        pytest.param(2.5, -0.1, 100, {findings.KL_EXPLOSION}, id="chosen ones"),
        pytest.param(0.5, -9.0, 2, set(), id="answers of two tokens: 18 nats make no explosion"),
        pytest.param(-1.5, -1.9, 3, set(), id="short ones fall"),
        pytest.param(-1.5, -1.9, 100, set(), id="chosen ones have fallen, and stay there"),
    ],
)
def test_a_policy_far_from_its_reference(chosen: float, rejected: float, num_tokens: float, kinds: set[str]) -> None:
    run = steps(20, chosen=lambda step: chosen, rejected=lambda step: rejected, num_tokens=num_tokens)
    assert {one.kind for one in found(run)} == kinds


def test_explosion_without_comparison_is_learning() -> None:
    """Supervised fine-tuning moves far from the policy it begins with, and is not held to it."""
    assert not found(steps(20, chosen=lambda step: 2.6))


def test_chosen_responses_that_fall_without_bound() -> None:
    """-0.1 a step: the window's mean passes -0.8 at step 12 (steps 5 to 12, mean -0.85); half as many nats are no matter."""
    falling = steps(30, chosen=lambda step: -0.1 * step, rejected=lambda step: -0.15 * step)
    first = next(one for one in found(falling) if one.kind == findings.CHOSEN)
    assert (first.step, first.good_step, first.by) == (12, 3, "chosen")
    assert "-0.85 nats a token against the reference in steps 5 to 12" in first.seen
    short = steps(30, chosen=lambda step: -0.1 * step, rejected=lambda step: -0.15 * step, num_tokens=10)
    assert next(one.step for one in found(short) if one.kind == findings.CHOSEN) == 24  # 20 nats a response: the mean passes -2


def test_log_probs_stand_for_log_ratios_where_nothing_is_scored() -> None:
    """They are compared with those of the first window: -2 and less by 0.1 a step after it."""
    run = steps(40, chosen=lambda step: -2.0 - 0.1 * max(0, step - 8), scored=False)
    (first, *_) = found(run)
    assert (first.kind, first.step) == (findings.CHOSEN, 20)  # steps 13 to 20: mean -2 - 0.1 * 8.5
    assert "-0.85 nats a token against the first steps" in first.seen
    assert not found(steps(40, chosen=lambda step: -2.0 + jagged(0.9)(step), scored=False))


def test_a_policy_that_comes_back_to_its_reference() -> None:
    def rejected(step: int) -> float:
        return -0.03 * step if step <= 10 else -0.01

    (first, *_) = found(steps(30, chosen=lambda step: 0.0, rejected=rejected))
    assert first.kind == findings.KL_COLLAPSE
    # the farthest window is steps 3 to 10, mean 0.03 * 6.5 = 0.195; less than a tenth of it is left in steps 11 to 18
    assert first.step == 18
    assert "0.01 nats a token are left in steps 11 to 18 of 0.195 nats a token before" in first.seen
    little = steps(30, chosen=lambda step: 0.0, rejected=lambda step: rejected(step) / 10)
    assert not found(little)  # it had hardly moved: 0.0195 nats a token, 1.95 a response
    never = steps(30, chosen=lambda step: 0.0, rejected=lambda step: -0.001)
    assert not found(never)


@pytest.mark.parametrize(
    ("norms", "first_seen"),
    [
        pytest.param({20: 40.0}, 20, id="40 times the usual"),
        pytest.param({20: 9.0}, None, id="9 times the usual"),
        pytest.param({5: 40.0}, None, id="one of the first steps"),
        pytest.param({3: 20.0, 20: 40.0}, None, id="the first steps had one nearly as large"),
        pytest.param({20: 40.0, 21: 40.0}, 20, id="two of them"),
    ],
)
def test_a_gradient_spike(norms: dict[int, float], first_seen: int | None) -> None:
    seen = found(steps(40, norm=lambda step: norms.get(step, 1.0)))
    assert (seen[0].step if seen else None) == first_seen
    assert all(one.kind == findings.GRADIENT and one.good_step == one.step - 1 for one in seen)


def test_a_gradient_that_shrinks_as_pairs_are_learned_may_come_back() -> None:
    """A hard pair after many easy ones has the gradient that all had in the beginning."""
    assert not found(steps(60, norm=lambda step: 2.0 if step == 50 else max(0.01, 2.0 - 0.1 * step)))


@pytest.mark.parametrize(
    ("accuracy", "loss", "pairs", "is_seen"),
    [
        pytest.param(0.4, 0.75, 16, True, id="accuracy falls and the loss rises"),
        pytest.param(0.4, 0.43, 16, False, id="the loss stays"),
        pytest.param(0.8, 0.75, 16, False, id="accuracy stays"),
        pytest.param(0.6, 0.75, 1, False, id="of 8 pairs a window, 2 fewer right is noise"),
    ],
)
def test_accuracy_that_falls_while_the_loss_rises(accuracy: float, loss: float, pairs: int, is_seen: bool) -> None:
    def after(value: float, first: float) -> Callable[[int], float]:
        return lambda step: first if step <= 20 else value

    run = steps(40, after(loss, 0.4), accuracy=after(accuracy, 0.875), pairs=pairs)
    kinds = {one.kind for one in found(run)}
    assert (findings.ACCURACY in kinds) == is_seen
    first = next((one for one in found(run) if one.kind == findings.ACCURACY), None)
    assert first is None or (first.by == "margin" and "0.875 and 0.4 up to step 8" in first.seen)


@pytest.mark.parametrize(
    ("losses", "first_seen"),
    [
        pytest.param([0.69, 0.60, 0.66, 0.66], 3, id="twice in a row above the best by 5 % of the first"),
        pytest.param([0.69, 0.60, 0.66, 0.61, 0.66], None, id="once, and once more"),
        pytest.param([0.69, 0.60, 0.62, 0.63, 0.63], None, id="by less"),
        pytest.param([0.69, 0.60, 0.90], 2, id="by much at once"),
        pytest.param([0.69, 0.75, 0.75], 2, id="it was never better than at the start"),
        pytest.param([0.69, 0.02, 0.04, 0.04], None, id="what is 5 % of next to nothing is next to nothing"),
        pytest.param([0.69, 0.60, math.nan], 2, id="not finite"),
        pytest.param([25.0, 20.0, 21.0, 21.3, 21.3], 4, id="a loss that starts at 25"),
    ],
)
def test_a_validation_that_turns(losses: Sequence[float], first_seen: int | None) -> None:
    known, seen = None, []
    for number, loss in enumerate(losses):
        known = detections.validated(known, 50 * number, loss, 64)
        seen.append(detections.validation_turned("validation-held_out", known, 50 * number, loss))
    first = next((one for one in seen if one), None)
    assert (None if first is None else first.step) == (None if first_seen is None else 50 * first_seen)
    if first is not None:
        best = min(range(len(losses)), key=lambda number: losses[number] if math.isfinite(losses[number]) else math.inf)
        assert (first.good_step, first.split, first.key) == (
            50 * best, "validation-held_out", "validation_turned validation-held_out"
        )  # fmt: skip
        assert first.seen.startswith("the validation set held_out has turned: its loss is ")


def test_a_validation_of_other_pairs_begins_anew() -> None:
    """dpo.val_batches may change where a run is resumed."""
    known = detections.validated(detections.validated(None, 0, 0.5, 64), 50, 0.9, 128)
    assert known == Validated(0.9, 0.9, 50, 128)
    assert detections.validation_turned("validation-a", known, 50, 0.9) is None


def test_a_healthy_run_says_nothing() -> None:
    """A run as published ones go: loss down to 0.5, both sides fall, batches of 8 are noisy, validation levels off."""
    noise = [math.sin(12.9898 * step) * 43758.5453 % 1.0 - 0.5 for step in range(1, 402)]  # the usual one-line noise
    run = steps(
        400,
        lambda step: LN2 if step == 1 else LN2 - 0.2 * step / 400 + 0.3 * noise[step],
        lambda step: 2.0 * math.exp(noise[step]),
        lambda step: min(1.0, max(0.0, 0.5 + 0.25 * step / 400 + 0.5 * noise[step])),
        lambda step: -0.4 * step / 400 + 0.1 * noise[step],
        lambda step: -0.6 * step / 400 + 0.1 * noise[step - 1],
        pairs=8,
    )
    assert not found(run)
    assert not found(run, starts_exactly=False)


def test_the_scatter_of_a_slope_is_not_its_height() -> None:
    """0 1 2 ... 7 has a mean of 3.5; its steps are 1 each, so the scatter is sqrt(1/2)."""
    trend = Trend.of([float(number) for number in range(8)])
    assert (trend.mean, trend.scatter, trend.error) == pytest.approx((3.5, 0.5**0.5, 0.25))
    assert Trend.of([3.0]) == Trend(3.0, 0.0, 1)


def test_a_run_whose_beginning_nobody_saw_is_not_compared_with_it() -> None:
    """It was resumed at step 101 from a checkpoint without guards: 0.3 is no start, and a norm of 0.01 no first one."""
    run = steps(150, lambda step: 0.3 if step < 120 else 0.6, lambda step: 1.0 if step == 130 else 0.01, scored=False)
    run = [replace(one, chosen=Side(-1.0 if one.step < 120 else -0.1 * one.step, 100)) for one in run]
    kinds = {one.kind for one in found(run, starts_exactly=False)}
    assert {findings.CHOSEN, findings.GRADIENT} <= kinds
    assert not found(run[100:], starts_exactly=False)


def test_what_is_remembered_comes_back_from_a_file_exactly() -> None:
    """A run that is resumed anywhere finds what it would have found, step by step."""
    run = steps(
        40, lambda step: LN2 + step / 30, lambda step: 1 / 3, lambda step: 1 / step, lambda step: -step / 7, lambda s: -0.1
    )
    run = [*run[:20], *(replace(one, rejected=None) for one in run[20:])]
    whole, again = History(), History()
    for one in run:
        whole, again = whole.after(one), History.from_plain(orjson.loads(orjson.dumps(again.to_plain()))).after(one)
        whole, again = (history.validated("validation-a", Validated(1 / 3, 0.1, one.step, 64.0)) for history in (whole, again))
        assert again == whole
    assert len(whole.last) == len(whole.first) == WINDOW

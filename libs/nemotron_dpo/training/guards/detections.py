"""The detections: from what was read of a run to what is wrong with it. No clock, no rank and no model enters.

Each takes the history that ends with the step in question, and gives its finding or None. Bounds are where healthy runs do not
come: a window's mean must leave its bound by more than three standard errors, and by a share of what the loss was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

from nemotron_dpo.training.guards import findings
from nemotron_dpo.training.guards.findings import Finding
from nemotron_dpo.training.guards.history import WINDOW, History, Trend, Validated, accuracy_of, distances
from nemotron_dpo.training.guards.readings import Reading

_ERRORS = 3.0  # standard errors that are noise
_RISE = 0.1  # a loss may rise by this share of what it was
_FALL = 0.2  # accuracy may fall by so much
_TINY = 1e-6
# A policy that is so far from its reference, in nats a token and a response, has left it. Short answers move far a token, and
# rejected ones, whose probability is to fall, move far without harm.
_FAR_TOKEN, _FAR_RESPONSE = {"chosen": 2.0, "rejected": 6.0}, 30.0
_FALLEN_TOKEN, _FALLEN_RESPONSE = 0.8, 20.0
_MOVED_TOKEN, _MOVED_RESPONSE, _LEFT = 0.05, 2.0, 0.1  # it had moved by so much, and this share of it is left
_SPIKE, _ABOVE_FIRST = 10.0, 3.0  # times the median of the window before, and times the largest of the first steps
_WORSE, _MUCH_WORSE, _IN_A_ROW = 0.05, 0.25, 2
# The kinds of finding that `of_step` gives.
OF_STEPS = frozenset(
    {
        findings.LOSS,
        findings.KL_EXPLOSION,
        findings.KL_COLLAPSE,
        findings.GRADIENT,
        findings.ACCURACY,
        findings.CHOSEN,
    }
)


def of_step(history: History, *, starts_exactly: bool) -> list[Finding]:
    """What the training step that `history` ends with shows.

    `starts_exactly`: the loss of step 1 is known beforehand, so it has no noise of a batch.
    """
    found = (
        loss_above_start(history, starts_exactly=starts_exactly),
        kl_explosion(history),
        kl_collapse(history),
        gradient_spike(history),
        accuracy_falls(history),
        chosen_logp_falls(history),
    )
    return [one for one in found if one is not None]


def loss_above_start(history: History, *, starts_exactly: bool) -> Finding | None:
    """The mean loss of the window is above that of step 1 or, where that is a noisy batch, above that of the first window."""
    window, first = history.window, history.first
    if window is None or window[0].step == 1 or not history.knows_start:
        return None
    now = Trend.of([one.loss for one in window])
    scatter = now.scatter if first[0].loss_error is None else first[0].loss_error
    starts = [(first[:1], Trend(first[0].loss, 0.0 if starts_exactly else scatter))]
    if not starts_exactly and window[0].step > first[-1].step:
        starts.append((first, Trend.of([one.loss for one in first])))
    level, of, start = max(((_rise(start, now), of, start) for of, start in starts), key=lambda found: found[0])
    seen = f"the loss is above its start: {now.mean:.4g} in {_steps(window)}, {start.mean:.4g} in {_steps(of)}"
    return _windowed(findings.LOSS, window, seen, level)


def kl_explosion(history: History) -> Finding | None:
    """The log-ratios of one side are so large that the policy has left its reference."""
    window = history.window
    found = distances(window) if window is not None and window[-1].rejected is not None else {}
    if window is None or not found:
        return None
    side = max(found, key=lambda name: abs(found[name]) / _FAR_TOKEN[name])
    level = _level(found[side], _FAR_TOKEN[side], _FAR_RESPONSE, _length(window, side))
    seen = f"the KL divergence explodes: {side} responses are {_nats(found[side])} from the reference in {_steps(window)}"
    return _windowed(findings.KL_EXPLOSION, window, seen, level, by="log_ratio")


def kl_collapse(history: History) -> Finding | None:
    """The policy had left its reference and came back to it: what it had learned is lost."""
    window = history.window
    found = distances(window) if window is not None else {}
    if window is None or not found:
        return None
    now = max(map(abs, found.values()))
    moved = _level(history.farthest, _MOVED_TOKEN, _MOVED_RESPONSE, _length(window, next(iter(found))))
    level = min(_LEFT * history.farthest / max(now, _TINY), moved)
    seen = f"the KL divergence collapses: {_nats(now)} are left in {_steps(window)} of {_nats(history.farthest)} before"
    return _windowed(findings.KL_COLLAPSE, window, seen, level, by="log_ratio")


def gradient_spike(history: History) -> Finding | None:
    """The gradient norm is far above those before it, and above all of the first steps, when nothing was learned yet."""
    *before, now = history.last or (None,)
    if now is None or not history.knows_start or len(before) < WINDOW - 1 or now.step <= WINDOW:
        return None
    usual, first = median(one.grad_norm for one in before), max(one.grad_norm for one in history.first)
    level = min(now.grad_norm / max(_SPIKE * usual, _TINY), now.grad_norm / max(_ABOVE_FIRST * first, _TINY))
    if level <= 1:
        return None
    seen = f"a gradient spike: its norm is {now.grad_norm:.3g}, {usual:.3g} in {_steps(before)} (median)"
    return Finding(findings.GRADIENT, now.step, seen, level, now.step - 1)


def accuracy_falls(history: History) -> Finding | None:
    """Accuracy is below that of its best window, and the loss above that of the same window."""
    window, best = history.window, history.best
    now = accuracy_of(window) if window is not None else None
    if window is None or now is None or best is None:
        return None
    fall = best.accuracy - now.accuracy
    error = math.hypot(*(math.sqrt(one.accuracy * (1 - one.accuracy) / one.num_pairs) for one in (best, now)))
    trend = Trend.of([one.loss for one in window])
    rise = _rise(Trend(best.loss, trend.scatter, WINDOW), trend, scale=max(abs(best.loss), abs(history.first[0].loss)))
    level = min(fall / max(_FALL, _ERRORS * error), rise)
    seen = (
        f"accuracy falls while the loss rises: accuracy {now.accuracy:.3f}, loss {now.loss:.4g} in {_steps(window)}, "
        f"{best.accuracy:.3f} and {best.loss:.4g} up to step {best.step}"
    )
    return _windowed(findings.ACCURACY, window, seen, level, by="margin")


def chosen_logp_falls(history: History) -> Finding | None:
    """Chosen responses have become improbable, and still lose: their probability goes to neither response of a pair."""
    window = history.window
    sides = [one.chosen for one in window or () if one.chosen is not None]
    firsts = [one.chosen for one in history.first if one.chosen is not None]
    if window is None or not firsts or len(sides) < WINDOW or not (window[-1].is_scored or history.knows_start):
        return None
    values = [side.per_token for side in sides]
    start = 0.0 if window[-1].is_scored else fmean(side.per_token for side in firsts)
    half = WINDOW // 2
    if fmean(values[half:]) >= fmean(values[:half]):
        return None
    fallen = fmean(values) - start
    level = _level(min(fallen, 0.0), _FALLEN_TOKEN, _FALLEN_RESPONSE, _length(window, "chosen"))
    since = "the reference" if window[-1].is_scored else "the first steps"
    seen = f"the log-prob of chosen responses falls without bound: {_nats(fallen)} against {since} in {_steps(window)}"
    return _windowed(findings.CHOSEN, window, seen, level, by="chosen")


def validated(before: Validated | None, step: int, loss: float, num_pairs: float) -> Validated:
    """What is known of a validation set after `step`, which left it `loss`; `before` is what was known.

    It begins anew where a resumed run evaluates another number of its pairs.
    """
    if before is None or before.num_pairs != num_pairs:
        return Validated(loss, loss, step, num_pairs)
    if loss < before.best:
        return replace(before, best=loss, best_step=step, num_worse=0)
    return replace(before, num_worse=before.num_worse + 1 if _worse(before, loss) > 1 else 0)


def validation_turned(name: str, now: Validated, step: int, loss: float) -> Finding | None:
    """A validation's loss is above its lowest: twice in a row, or by much at once."""
    level = _worse(now, loss)
    if level <= 1 or (now.num_worse < _IN_A_ROW and level * _WORSE < _MUCH_WORSE):
        return None
    what = name.removeprefix("validation-")
    seen = f"the validation set {what} has turned: its loss is {loss:.4g}, {now.best:.4g} after step {now.best_step}"
    return Finding(findings.VALIDATION, step, seen, level, now.best_step, split=name)


def _worse(known: Validated, loss: float) -> float:
    if not math.isfinite(loss):
        return math.inf
    return (loss - known.best) / max(_WORSE * max(abs(known.best), abs(known.first)), _TINY)


def _rise(start: Trend, now: Trend, scale: float | None = None) -> float:
    """How far `now` is above `start`, 1 where that is more than noise and than a share of `scale`, which is the start's own."""
    bound = max(_RISE * (abs(start.mean) if scale is None else scale), _ERRORS * math.hypot(start.error, now.error), _TINY)
    return (now.mean - start.mean) / bound


def _level(per_token: float, most_token: float, most_response: float, num_tokens: float) -> float:
    return min(abs(per_token) / most_token, abs(per_token) * num_tokens / most_response)


def _length(window: Sequence[Reading], side: str) -> float:
    return fmean(getattr(one, side).num_tokens for one in window)


def _windowed(kind: str, window: Sequence[Reading], seen: str, level: float, by: str = "loss") -> Finding | None:
    """The policy before the last that was measured outside of the window is the one that is known to be good."""
    return Finding(kind, window[-1].step, seen, level, max(0, window[0].step - 2), by) if level > 1 else None


def _steps(readings: Sequence[Reading]) -> str:
    first, last = readings[0].step, readings[-1].step
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _nats(per_token: float) -> str:
    return f"{per_token:.3g} nats a token"

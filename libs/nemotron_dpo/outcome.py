"""What came of a run, from its metrics.jsonl: how it began, how it ended, which validation was best, and that in a sentence.

A single batch says little, so beginning and end are means over the first and the last tenth of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, median
from types import NoneType
from typing import Any

import orjson

Row = Mapping[str, Any]

# The speed of a run is the median of these over its steps, without the first, which warms up. Tokens are those of responses.
PAIRS_PER_SECOND, TOKENS_PER_SECOND = "timing/train/pairs_per_sec", "timing/train/valid_tokens_per_sec"
_NUMBERS = (int, float, NoneType)
_NOISE_FLOOR = "reward_noise_floor"
# A validation loss that rose by more than this share above its best is worse, not only another number.
_WORSE = 0.01


@dataclass(frozen=True)
class Ends:
    """Means of metrics, by name, over the first and over the last `window` training steps."""

    first: Mapping[str, float]
    last: Mapping[str, float]
    window: int


@dataclass(frozen=True)
class Validation:
    """Metrics of one validation set by name: at the first time, at the best, which was after step `best_step`, and last.

    A metric that was not finite is left out; a loss that never was finite has its best the first time.
    """

    name: str
    first: Mapping[str, float]
    best: Mapping[str, float]
    last: Mapping[str, float]
    best_step: int
    last_step: int

    @property
    def turned(self) -> bool:
        """Whether it got worse after its best."""
        best, last = self.best.get("loss"), self.last.get("loss")
        return best is not None and last is not None and last > best + _WORSE * abs(best)


@dataclass(frozen=True)
class Outcome:
    """A run of `num_steps` steps, and its speed over all processes; None where no step says it."""

    num_steps: int
    ends: Ends
    validations: tuple[Validation, ...]
    pairs_per_second: float | None
    tokens_per_second: float | None

    @property
    def is_unmeasured(self) -> bool:
        """Whether nothing was measured after an update: a step's record is from before its own."""
        return self.num_steps == 1 and not any(one.last_step for one in self.validations)

    @property
    def learned_nothing(self) -> bool:
        """Whether rounding alone may make the margins: that of the last steps, and those of all validations after a step."""
        later = [one.last for one in self.validations if one.last_step and margin(one.last) is not None]
        return not self.is_unmeasured and all(map(is_noise, (self.ends.last, *later)))

    def shorter_warm_up(self, warmup_steps: int) -> int | None:
        """A tenth of the steps, where a warm-up of `warmup_steps` took all of them; else None."""
        return self.num_steps // 10 if 0 < self.num_steps <= warmup_steps else None


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.jsonl; empty where the file does not exist. A line that a crash cut short is skipped."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [row for line in lines if (row := read_row(line)) is not None]


def read_row(line: bytes) -> Row | None:
    """The record in a line of metrics.jsonl: a step, and names of numbers; None where it is none."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    is_record = isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0
    return row if is_record and all(type(value) in _NUMBERS for value in row.values()) else None


def outcome(rows: Sequence[Row]) -> Outcome:
    """What `rows` come to."""
    train = [_metrics(row, "train/") for row in rows if "train/loss" in row]
    window = max(1, len(train) // 10)
    measured = (key.rpartition("/") for row in rows for key in row if key.startswith("validation-"))
    names = sorted({name for name, _, metric in measured if metric == "loss"})
    return Outcome(
        len(train),
        Ends(_means(train[:window]), _means(train[-window:]), window),
        tuple(_validation(name, rows) for name in names),
        _speed(rows, PAIRS_PER_SECOND),
        _speed(rows, TOKENS_PER_SECOND),
    )


def margin(metrics: Mapping[str, float]) -> float | None:
    """The mean reward of the chosen responses less that of the rejected ones."""
    chosen, rejected = metrics.get("rewards_chosen_mean"), metrics.get("rewards_rejected_mean")
    return None if chosen is None or rejected is None else chosen - rejected


def is_noise(metrics: Mapping[str, float]) -> bool:
    """Whether the margin is below its noise floor.

    A record has the floor of one mean reward. The margin is a difference of two, so its floor is sqrt(2) times that.
    """
    value = margin(metrics)
    return value is not None and abs(value) < sqrt(2) * metrics.get(_NOISE_FLOOR, 0.0)


def sentence(made: Outcome) -> str:
    """What was learned."""
    last = made.ends.last
    if not made.num_steps:
        return "nothing was trained"
    if made.ends.first.get("loss") is None or last.get("loss") is None:
        return "its loss was not finite at its beginning or its end"
    if made.is_unmeasured and is_noise(last):
        return "what its only step did was not measured: the record is from before it, and a validation would be from after it"
    if made.learned_nothing:
        return "no preference was learned that stands out from rounding: more steps, a shorter warm-up or a higher rate may"
    turned = [one for one in made.validations if one.turned]
    if turned:
        one = turned[0]
        return f"{one.name} was best after step {one.best_step} and got worse: from there on the pairs are learned by heart"
    unseen = [one for one in made.validations if one.last.get("accuracy") is not None and one.last_step]  # not of the reference
    if not any(metrics.get("accuracy") for metrics in (last, *(one.last for one in unseen))):
        return f"the loss went from {made.ends.first['loss']:.4f} to {last['loss']:.4f}"
    where = f"pairs of {unseen[0].name}" if unseen else f"pairs of the last {_steps(made.ends)}"
    share = unseen[0].last["accuracy"] if unseen else last["accuracy"]
    return f"the policy now prefers the chosen response in {share:.0%} of the {where}"


def _speed(rows: Sequence[Row], name: str) -> float | None:
    speeds = [row[name] for row in rows if row.get(name) is not None]
    return median(speeds[1:] or speeds) if speeds else None


def _steps(ends: Ends) -> str:
    return f"{ends.window} steps" if ends.window > 1 else "step"


def _validation(split: str, rows: Sequence[Row]) -> Validation:
    of_split = [(row["step"], _metrics(row, f"{split}/")) for row in rows if f"{split}/loss" in row]
    best_step, best = min(of_split, key=lambda found: found[1].get("loss", inf))
    label = split.replace("validation-default", "validation").replace("validation-", "validation ")
    return Validation(label, of_split[0][1], best, of_split[-1][1], best_step, of_split[-1][0])


def _metrics(row: Row, prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and value is not None}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics that all `rows` have."""
    names = set.intersection(*map(set, rows)) if rows else set()
    return {name: fmean(row[name] for row in rows) for name in sorted(names)}

"""What the guards remember of a run: the first steps, the latest ones, and the best of what lies between.

It is a function of the readings in their order, and it is in the checkpoints: a resumed run finds what it would have found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from nemotron_dpo.training.guards.readings import Reading, from_plain, to_plain

WINDOW = 8  # steps that are looked at together: one batch says little


@dataclass(frozen=True)
class Trend:
    """A mean over the readings of a window, with the standard error that their scatter from one step to the next gives it.

    A slope enters the scatter little, so that what rises steadily is not taken for noise.
    """

    mean: float
    scatter: float
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Trend:
        """That of `values`, in the order of their steps."""
        squares = [(later - earlier) ** 2 for earlier, later in pairwise(values)]
        return cls(fmean(values), math.sqrt(fmean(squares) / 2) if squares else 0.0, len(values))

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.scatter / math.sqrt(self.count)


@dataclass(frozen=True)
class Best:
    """The window of the highest accuracy: its last step, accuracy, loss, and over how many pairs they are means."""

    step: int
    accuracy: float
    loss: float
    num_pairs: float


@dataclass(frozen=True)
class Validated:
    """A validation set: its first loss, the lowest and the step that left it, and how many in a row were well above that.

    They are means over `num_pairs` pairs, the same each time.
    """

    first: float
    best: float
    best_step: int
    num_pairs: float
    num_worse: int = 0


@dataclass(frozen=True)
class History:
    """The first and the last readings, at most WINDOW each, and what the windows before the last came to.

    farthest: the greatest distance from the reference that a window had, in nats a token. validations: by the name of the set.
    """

    first: tuple[Reading, ...] = ()
    last: tuple[Reading, ...] = ()
    best: Best | None = None
    farthest: float = 0.0
    validations: Mapping[str, Validated] = field(default_factory=dict)

    def after(self, one: Reading) -> History:
        """The history once `one` came too."""
        first = self.first if len(self.first) == WINDOW else (*self.first, one)
        moved = replace(self, first=first, last=(*self.last, one)[-WINDOW:])
        window = self.window
        return moved if window is None else replace(moved, best=_better(self.best, window), farthest=_farther(self, window))

    def validated(self, name: str, outcome: Validated) -> History:
        """The history once the set `name` was validated."""
        return replace(self, validations={**self.validations, name: outcome})

    @property
    def knows_start(self) -> bool:
        """Whether it goes back to step 1: a run that is resumed from a checkpoint without guards does not."""
        return bool(self.first) and self.first[0].step == 1

    @property
    def window(self) -> tuple[Reading, ...] | None:
        """The last WINDOW readings; None before there are as many."""
        return self.last if len(self.last) == WINDOW else None

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it, exactly; `from_plain` is the inverse."""
        return {
            "first": [to_plain(one) for one in self.first],
            "last": [to_plain(one) for one in self.last],
            "best": vars(self.best) if self.best else None,
            "farthest": self.farthest,
            "validations": {name: vars(one) for name, one in self.validations.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> History:
        """See `to_plain`."""
        return cls(
            tuple(map(from_plain, plain["first"])),
            tuple(map(from_plain, plain["last"])),
            Best(**plain["best"]) if plain["best"] else None,
            plain["farthest"],
            {name: Validated(**one) for name, one in plain["validations"].items()},
        )


def accuracy_of(window: Sequence[Reading]) -> Best | None:
    """What a window says of accuracy and loss; None where responses are not compared."""
    counts = [one.num_pairs for one in window]
    accuracies = [one.accuracy for one in window if one.accuracy is not None]
    if len(accuracies) < len(window):
        return None
    mean = sum(accuracy * count for accuracy, count in zip(accuracies, counts, strict=True)) / sum(counts)
    return Best(window[-1].step, mean, fmean(one.loss for one in window), sum(counts))


def distances(window: Sequence[Reading]) -> dict[str, float]:
    """The mean log-ratio a token of each side that all readings of `window` have, by its name."""
    found: dict[str, float] = {}
    for side in ("chosen", "rejected"):
        values = [getattr(one, side).per_token for one in window if one.is_scored and getattr(one, side) is not None]
        found |= {side: fmean(values)} if len(values) == len(window) else {}
    return found


def _better(best: Best | None, window: Sequence[Reading]) -> Best | None:
    now = accuracy_of(window)
    return now if best is None or (now is not None and now.accuracy > best.accuracy) else best


def _farther(history: History, window: Sequence[Reading]) -> float:
    return max(history.farthest, *map(abs, distances(window).values()), 0.0)

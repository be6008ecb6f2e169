"""Watch over a run: each trouble is said once, and again when it has got much worse or is back after it was over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemotron_dpo.training.guards import detections
from nemotron_dpo.training.guards.alarm import Alarm
from nemotron_dpo.training.guards.blamed import worst
from nemotron_dpo.training.guards.findings import GRADIENT, Finding
from nemotron_dpo.training.guards.history import WINDOW, History
from nemotron_dpo.training.guards.readings import reading, validation_reading
from nemotron_dpo.training.guards.remedies import Tuning, remedy
from nemotron_dpo.training.record import Record

_MUCH_WORSE = 3.0  # times the level at which it was said
_MOST = 1e300  # of a level: JSON has no infinity


@dataclass(frozen=True)
class WatchSettings:
    """What the guards are told of a run.

    stops: a finding ends it. compares: the objective compares responses. starts_exactly: the loss of step 1 is known.
    """

    tuning: Tuning
    stops: bool = False
    compares: bool = True
    starts_exactly: bool = False


@dataclass(frozen=True)
class Told:
    """What was said of one trouble: at which level, how often it came, the last step that showed it, and whether it is over."""

    level: float
    times: int
    step: int
    is_over: bool = False


@dataclass
class Watch:
    """The guards of one run. Every rank has one, takes the same records, and comes to the same.

    alarms: what was said, as run.json has it, that of the run that is resumed before it. fatal: why the run must end.
    """

    settings: WatchSettings
    history: History = field(default_factory=History)
    told: dict[str, Told] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    fatal: Finding | None = None

    def take(self, record: Record) -> list[Alarm]:
        """What is to be said now that `record` has come; of how long a checkpoint took there is nothing to say."""
        if not (record.is_training or record.is_validation):
            return []
        found = self._of_step(record) if record.is_training else self._of_validation(record)
        level = max((one.level for one in found), default=0.0)
        alarms = [self._alarm(one, record, level) for one in found if self._is_news(one)]
        self.alarms += [one.facts() for one in alarms]
        if self.settings.stops:
            self.fatal = self.fatal or next((one for one in found if self._is_fatal(one)), None)
        return alarms

    def needed(self, saved: Sequence[int]) -> set[int]:
        """Of the steps with a checkpoint, those that must stay so that a later finding has one from before the trouble.

        It will find good what was measured before its window, and what the best validation measured. Of the steps that are too
        young for the first the oldest stays: it will be old enough soonest.
        """
        if not self.settings.stops or not self.history.last:
            return set()
        before = self.history.last[-1].step - WINDOW
        until = (before, *(one.best_step for one in self.history.validations.values()))
        good = {max((step for step in saved if step <= last), default=None) for last in until}
        return {step for step in (*good, min((step for step in saved if step > before), default=None)) if step is not None}

    def to_plain(self) -> dict[str, Any]:
        """Everything that later findings depend on, as JSON has it."""
        told = {key: vars(one) for key, one in self.told.items()}
        return {"history": self.history.to_plain(), "told": told, "alarms": list(self.alarms)}

    def go_on(self, plain: Mapping[str, Any]) -> None:
        """Take up where the watch was that gave `plain`, which is empty where there was none."""
        if plain:
            self.history = History.from_plain(plain["history"])
            self.told = {key: Told(**one) for key, one in plain["told"].items()}
            self.alarms = list(plain["alarms"])

    def _of_step(self, record: Record) -> list[Finding]:
        self.history = self.history.after(reading(record, compares=self.settings.compares))
        found = detections.of_step(self.history, starts_exactly=self.settings.starts_exactly)
        for key, one in self.told.items():
            if key in detections.OF_STEPS and record.step - one.step > WINDOW:
                self.told[key] = replace(one, is_over=True)
        return found

    def _of_validation(self, record: Record) -> list[Finding]:
        (loss, num_pairs), name = validation_reading(record), record.split
        known = self.history.validations.get(name)
        if not math.isfinite(loss) and (known is None or known.num_pairs != num_pairs):
            return []  # nothing better is known of these pairs, and JSON could not hold it
        now = detections.validated(known, record.step, loss, num_pairs)
        self.history = self.history.validated(name, now)
        found = detections.validation_turned(name, now, record.step, loss)
        if now.num_worse == 0:
            self.told = {key: replace(one, is_over=True) if key.endswith(f" {name}") else one for key, one in self.told.items()}
        return [] if found is None else [found]

    def _is_news(self, found: Finding) -> bool:
        """Whether it is to be said: the first time, far above its level then, or back for the 2nd, 4th, 8th time and so on."""
        level, before = min(found.level, _MOST), self.told.get(found.key)
        if before is None:
            told, is_news = Told(level, 1, found.step), True
        elif before.is_over:
            times = before.times + 1
            told, is_news = Told(level, times, found.step), times & (times - 1) == 0
        else:
            is_news = level >= _MUCH_WORSE * before.level
            told = Told(level if is_news else before.level, before.times, found.step)
        self.told[found.key] = told
        return is_news

    def _is_fatal(self, found: Finding) -> bool:
        """A gradient that is clipped does no harm alone: if it did, the loss will show it."""
        return found.kind != GRADIENT or not self.settings.tuning.clips

    def _alarm(self, found: Finding, record: Record, level: float) -> Alarm:
        pairs = worst(record.pairs, found.by, compares=self.settings.compares)
        return Alarm(found, pairs, remedy(found, self.settings.tuning, level), self.told[found.key].times)

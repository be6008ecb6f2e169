"""The watch in a run: its alarms are said, its memory is saved with the run, and where it must, it ends the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nemotron_dpo.policy import parallel
from nemotron_dpo.training.guards.watch import Watch
from nemotron_dpo.training.record import Record, Totals
from nemotron_dpo.training.stopping import Stop

KEY = "dpo.on_divergence"


class KeptCheckpoints(Protocol):
    """The checkpoints of a run, as far as it matters here."""

    def good(self, step: int) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint up to `step`, None where there is none, and those that are later."""
        ...


class Guarded:
    """A run under the eyes of `watch`, or of nobody where that is None."""

    def __init__(self, watch: Watch | None, totals: Totals, stop: Stop, say: Callable[[str], object]) -> None:
        self._watch, self._totals, self._stop, self._say = watch, totals, stop, say
        if watch is not None:
            watch.go_on(totals.guards)

    def take(self, record: Record) -> None:
        """Look at the next record, which `totals` has already; every rank calls it."""
        watch = self._watch
        if watch is None:
            return
        for alarm in watch.take(record):
            for line in alarm.lines():
                self._say(line)
        self._totals.guards = watch.to_plain()
        # all ranks have the same numbers; but were one of them rounded otherwise, they would wait for each other for ever
        if watch.settings.stops and parallel.any_rank(watch.fatal is not None):
            self._stop.give_up(f"{KEY}: {watch.fatal.seen if watch.fatal else 'another rank'}")

    def alarms(self) -> list[Mapping[str, Any]]:
        """What was said so far."""
        return [] if self._watch is None else list(self._watch.alarms)

    def needed(self, saved: Sequence[int]) -> Collection[int]:
        """See Watch."""
        return () if self._watch is None else self._watch.needed(saved)

    def summary(self) -> list[str]:
        """A line that says once more what was said in between, where anything was."""
        first: dict[str, int] = {}
        for alarm in self.alarms():
            first.setdefault(alarm["kind"].replace("_", " "), alarm["step"])
        return [f"warned of {', '.join(f'{kind} (step {step})' for kind, step in first.items())}: see above"] if first else []

    def ending(self, last: int, checkpoints: KeptCheckpoints | None) -> str:
        """How the run, of `last` steps, was ended by a finding, and what of it is good."""
        assert self._watch is not None
        found = self._watch.fatal
        good_step = found.good_step if found else 0
        good, later = checkpoints.good(good_step) if checkpoints is not None else (None, [])
        none = (
            f"no checkpoint up to step {good_step} was saved, the last good one" if good_step else "none of its steps was good"
        )
        kept = f"the last good checkpoint is {good}" if good else none
        bad = f"; {', '.join(folder.name for folder in later)} may be worse" if later else ""
        return f"ended after step {self._totals.steps} of {last} by {self._stop.reason}: {kept}{bad}"

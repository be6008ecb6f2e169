"""What is known of one run, read once: its folder, its curves, its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_dpo.report import measured, pair_log
from nemotron_dpo.report.bootstrap import Interval, interval, share_interval
from nemotron_dpo.report.measured import Measured
from nemotron_dpo.report.pair_log import PairChanges, PairLog, Sightings
from nemotron_dpo.report.run_folder import METRICS, RunFolder, open_run

_ENOUGH = 0.25  # of the steps that were asked for: what came of fewer may be the warm-up's


@dataclass(frozen=True)
class Run:
    """A run. `log` is None where it wrote no pairs_log.arrow, `change` where what training did to its pairs is not known."""

    given: RunFolder
    measured: Measured
    log: PairLog | None
    change: PairChanges | None

    @property
    def final(self) -> Sightings | None:
        """The pairs of the validation set that answers are read from, as the last policy has them."""
        name = self.measured.validation
        seen = self.log.splits.get(f"validation-{name}") if self.log and name else None
        if seen is None or not len(seen):
            return None
        last = seen.take(np.flatnonzero(seen.step == seen.step.max()))
        return last if np.isfinite(last.margin).all() else None

    @property
    def trained_on(self) -> tuple[int, int]:
        """Of the pairs of that set, how many are trained on as well, of how many."""
        return self.given.trained_on(self.measured.validation or "")

    @property
    def steps_planned(self) -> int | None:
        """How many steps were asked for, where that is known."""
        asked = self.given.setting("dpo.max_num_steps")
        return int(asked) if isinstance(asked, int | float) and asked > 0 else None

    @property
    def is_too_early(self) -> bool:
        """Whether too few steps were taken to judge them: none is measured, or the run ended long before its end."""
        made, planned = self.measured.made, self.steps_planned
        has_ended = self.given.state in ("done", "unknown")
        return made.is_unmeasured or (not has_ended and planned is not None and made.num_steps < _ENOUGH * planned)

    @property
    def alarms(self) -> list[Mapping[str, Any]]:
        """What the guards of training said."""
        said = self.given.facts.get("alarms", [])
        return [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the record is not whole."""
        return (*self.measured.remarks, *([self.log.problem] if self.log and self.log.problem else []))


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. Raises UserError where there is none."""
    given = open_run(folder)
    curves = measured.read(given.folder / METRICS, is_young=bool(given.facts))
    log = pair_log.read(given.folder)
    return Run(given, curves, log, _finite(log.change()) if log else None)


def what_pairs(*runs: Run) -> str:
    """What pairs of validation are called: held out they are only where none is known to be trained on as well."""
    return "validation" if any(run.trained_on[0] for run in runs) else "held-out"


def held_accuracy(run: Run) -> tuple[Interval, int] | None:
    """The last accuracy of the validation set that answers are read from, and of how many pairs; None without a record."""
    values = run.measured.sets.get(run.measured.validation or "", {})
    accuracy, pairs = values.get("accuracy"), values.get("num_valid_samples")
    if accuracy is None or pairs is None or pairs.last < 1 or not 0 <= accuracy.last <= 1:
        return None
    return share_interval(round(accuracy.last * pairs.last), int(pairs.last)), int(pairs.last)


def final_intervals(run: Run) -> dict[str, Interval]:
    """Accuracy, margin and loss of the last validation over its pairs, with their intervals; empty without pairs.

    The accuracy is that of the record, which counts a margin within rounding as wrong; without one that of the pairs.
    """
    final = run.final
    if final is None:
        return {}
    recorded = held_accuracy(run)
    accuracy = recorded[0] if recorded else share_interval(int((final.margin > 0).sum()), len(final))
    found = {"accuracy": accuracy, "margin": interval(final.margin)}
    return found | ({"loss": interval(final.loss)} if np.isfinite(final.loss).all() else {})


def _finite(change: PairChanges | None) -> PairChanges | None:
    """Without pairs that have no margin, as those of an objective that compares no responses."""
    if change is None:
        return None
    good = np.flatnonzero(np.isfinite(change.first.margin) & np.isfinite(change.last.margin))
    if not len(good):
        return None
    return PairChanges(change.split, change.first.take(good), change.last.take(good), change.was_seen_twice)

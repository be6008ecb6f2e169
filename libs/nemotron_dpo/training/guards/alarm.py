"""What is said of a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.training.guards.blamed import Blamed
from nemotron_dpo.training.guards.findings import Finding


@dataclass(frozen=True)
class Alarm:
    """A finding that is to be said, the pairs it was seen on most, and what to try. It came for the `times`-th time."""

    finding: Finding
    pairs: Sequence[Blamed]
    remedy: str
    times: int = 1

    def lines(self) -> list[str]:
        """For a person: what was seen, on which pairs, what to try."""
        found, again = self.finding, f" (it is back, {self.times} times by now)" if self.times > 1 else ""
        start, where = f"warning: step {found.step}:", "of this step's" if found.split == "train" else "of its"
        named = [f"{start} worst {where} pairs: {'; '.join(map(str, self.pairs))}"] if self.pairs else []
        return [f"{start} {found.seen}{again}", *named, f"{start} {self.remedy}"]

    def facts(self) -> dict[str, Any]:
        """The same for run.json."""
        found = self.finding
        pairs = [{"pair_id": one.pair_id, "source": one.source or None, "source_line": one.line} for one in self.pairs]
        facts = {"kind": found.kind, "step": found.step, "split": found.split, "seen": found.seen}
        return {**facts, "pairs": pairs, "remedy": self.remedy, "good_step": found.good_step}

"""Count what happened to the rows, by reason: for the closing line and for the report of --stats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nemotron_dpo.preferences.audit import figures, spoken
from nemotron_dpo.preferences.audit.facts import REWRITTEN, SIDES, FactTable
from nemotron_dpo.preferences.audit.findings import OF_SEVERAL_PAIRS, OddPairs, findings
from nemotron_dpo.preferences.notes import Notes, reported, reward_notes
from nemotron_dpo.preferences.notes import spoken as spoken_notes
from nemotron_dpo.preferences.problems import Reject
from nemotron_dpo.preferences.tokenize_chunk import Result
from nemotron_dpo.wording import counted

_FIRST_LINES = 5
_MANY_CUT = 0.1  # of all pairs


@dataclass
class Tally:
    """Adds up the results of all chunks.

    It keeps facts about each pair, 59 bytes, and takes as much again, and some more, while the audit is made. `drops_by_name`
    is what --drop names and `swapped` what --swap says. `parts` counts the pairs of each output, where there are two.
    `first_error` is where the first row that has one is, and what it is.
    """

    drops_by_name: frozenset[str] = frozenset()
    swapped: bool = False
    files: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    table: FactTable = field(default_factory=FactTable)
    errors: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    parts: dict[str, int] = field(default_factory=dict)
    first_error: str | None = None
    first_places: dict[str, list[str]] = field(default_factory=dict)
    _notes: Notes = field(default_factory=Counter)
    _left_out: np.ndarray | None = None

    def add(self, result: Result) -> None:
        """Count the rows of `result`."""
        self.files[result.source] = self.files.get(result.source, 0) + result.num_rows
        self.num_rows += result.num_rows
        self.table.add(result.source, result.facts, result.reward_columns)
        self._notes.update(result.notes)
        self.count(result.rejects)

    def count(self, rejects: Iterable[Reject]) -> None:
        """Count rows that were not written."""
        for reject in rejects:
            (self.drops if reject.drop else self.errors)[reject.reason] += 1
            if not reject.drop and self.first_error is None:
                self.first_error = str(reject.as_error())
            places = self.first_places.setdefault(reject.reason, [])
            if len(places) < _FIRST_LINES:
                places.append(f"{reject.source}:{reject.line}")

    def leave_out(self, rows: np.ndarray) -> None:
        """These pairs are not written; `count` hears of them as rejects."""
        self._left_out = rows

    @property
    def kept(self) -> np.ndarray:
        """The facts of the pairs that are written."""
        facts = self.table.all()
        return facts if self._left_out is None else np.delete(facts, self._left_out)

    @property
    def num_pairs(self) -> int:
        """How many pairs are written."""
        return len(self.table) - (0 if self._left_out is None else len(self._left_out))

    @cached_property
    def found(self) -> dict[str, OddPairs]:
        """What is odd about the pairs, those that are left out among them; once all results are added."""
        return findings(self.table.all())

    def closing_line(self) -> str:
        """One line of exact counts."""
        facts = self.kept
        num_tokens = sum(int(facts[side].sum(dtype=np.int64)) for side in SIDES)
        parts = "".join(f", {count} to {name}" for name, count in self.parts.items())
        written = f"{counted(len(facts), 'pair')} written ({int(np.count_nonzero(facts['cut']))} truncated){parts}"
        drops = f"{self.drops.total()} dropped{_by_name(self.drops)}"
        errors = f"{counted(self.errors.total(), 'error')}{_by_name(self.errors)}"
        read, tokens = counted(self.num_rows, "row"), counted(num_tokens, "token")
        return f"{read} read{self._places()}, {written}, {drops}, {errors}, {tokens}{spoken_notes(self.notes)}"

    @property
    def notes(self) -> Notes:
        """What is noted of the rows, and of the rewards of the pairs that are written."""
        return self._notes + reward_notes(self.kept, self.table.reward_columns)

    def audit(self) -> list[str]:
        """The audit as a person reads it."""
        return list(spoken.audit_lines(self.table, self.found, self.drops_by_name)) if len(self.table) else []

    def warnings(self) -> list[str]:
        """A line for each of what most users do not mean.

        Those are rows with errors, few rows that became pairs, many pairs that were cut, and columns that look swapped.
        """
        facts, lost, num_errors = self.kept, self.num_rows - self.num_pairs, self.errors.total()
        some = "a row has an error" if num_errors == 1 else f"{num_errors} rows have errors, the first"
        lines = [f"{some}: {self.first_error}"] if num_errors else []
        lines += [f"{lost} of {counted(self.num_rows, 'row')} became no pair"] if 2 * lost > self.num_rows else []
        num_truncated = int(np.count_nonzero(facts["cut"]))
        if num_truncated > _MANY_CUT * len(facts):
            sides = ", ".join(f"{name} in {count}" for name, count in figures.truncation(facts["cut"]).items() if count)
            what = f"--max-length cut {num_truncated} of {counted(len(facts), 'pair')} ({sides})"
            lines.append(f"{what}: a response that was cut has no end to learn")
        stand, dropped = figures.rewards(self.table.all()), self.drops["inverted"]
        stand = {**stand, "pairs": stand["pairs"] + dropped, "contradict": stand["contradict"] + dropped}
        columns = f" ({'; '.join(self.table.reward_columns)})" if self.table.reward_columns else ""
        doubt = spoken.doubt(stand, columns, swapped=self.swapped)
        return [*lines, doubt] if doubt else lines

    def _places(self) -> str:
        """A text that says how many files were read; empty for a single file, which the caller named."""
        num_empty = sum(not num_rows for num_rows in self.files.values())
        empty = f" ({num_empty} empty)" if num_empty else ""
        return f" from {len(self.files)} files{empty}" if len(self.files) > 1 else ""

    def report(self, digests: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
        """The content of the --stats file."""
        facts = self.kept
        both, repeated = (self.found[name] for name in OF_SEVERAL_PAIRS)
        repeats_of_both = np.intersect1d(both.rows, repeated.rows, assume_unique=True)
        return {
            "files": self.files,
            "rows": self.num_rows,
            "pairs": len(facts),
            **({"parts": self.parts} if self.parts else {}),
            "dropped": dict(self.drops),
            "errors": dict(self.errors),
            "first_places": self.first_places,
            **figures.report(self.table, facts, self.found),
            "prefix_rewrites": int(np.count_nonzero(facts["odd"] & REWRITTEN)),
            "duplicates": {
                "prompts": len(self.table) - len(np.unique(self.table.all()["prompt_digest"])),
                "pairs": len(repeated.rows),
                "both_ways": (len(both.rows) - len(repeats_of_both)) // 2,  # of A over B and B over A, once
            },
            **reported(self.notes),
            "digests": digests,
            "settings": settings,
        }


def _by_name(counter: Counter[str]) -> str:
    details = ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items()))
    return f" ({details})" if details else ""

"""Count what happened to the rows, by reason: for the closing line and for the report of --stats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemotron_dpo.preferences.notes import Notes, reported, spoken
from nemotron_dpo.preferences.problems import Reject
from nemotron_dpo.preferences.tokenize_chunk import CUT_CHOSEN, CUT_PROMPT, CUT_REJECTED, FACTS, Result

_FIRST_LINES = 5
_MANY_CUT = 0.1  # of all pairs
_ODD, _ODDER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


@dataclass
class Tally:
    """Adds up the results of all chunks.

    Facts about each pair are kept only where `for_report` is true, because they need memory: 38 bytes a pair, and about 130
    bytes a pair while the report is made.
    """

    for_report: bool = True
    files: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    num_pairs: int = 0
    num_tokens: int = 0
    num_truncated: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Counter)
    first_places: dict[str, list[str]] = field(default_factory=dict)
    _facts: list[np.ndarray] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count the rows of `result`."""
        self.files[result.source] = self.files.get(result.source, 0) + result.num_rows
        self.num_rows += result.num_rows
        self.num_pairs += len(result.facts)
        self.num_tokens += sum(int(result.facts[name].sum(dtype=np.int64)) for name in ("prompt", "chosen", "rejected"))
        self.num_truncated += int(np.count_nonzero(result.facts["cut"]))
        self.cut.update(_truncation(result.facts["cut"]))
        if self.for_report:
            self._facts.append(result.facts)
        self.notes.update(result.notes)
        for reject in result.rejects:
            self._count(reject)

    def _count(self, reject: Reject) -> None:
        (self.drops if reject.drop else self.errors)[reject.reason] += 1
        places = self.first_places.setdefault(reject.reason, [])
        if len(places) < _FIRST_LINES:
            places.append(f"{reject.source}:{reject.line}")

    def closing_line(self) -> str:
        """One line of exact counts."""
        written = f"{self.num_pairs} pairs written ({self.num_truncated} truncated)"
        errors, drops = (_counts(c, what) for c, what in ((self.errors, "errors"), (self.drops, "dropped")))
        counts = f"{self.num_rows} rows read{self._places()}, {written}, {drops}, {errors}, {self.num_tokens} tokens"
        return f"{counts}{spoken(self.notes)}"

    def warnings(self) -> list[str]:
        """A line for each of what most users do not mean: few rows became pairs, or many pairs were cut."""
        lost = self.num_rows - self.num_pairs
        lines = [f"{lost} of {self.num_rows} rows became no pair"] if 2 * lost > self.num_rows else []
        if self.num_truncated > _MANY_CUT * self.num_pairs:
            sides = ", ".join(f"{name} in {count}" for name, count in self.cut.items() if count)
            what = f"{self.num_truncated} of {self.num_pairs} pairs were cut to --max-length ({sides})"
            lines.append(f"{what}: a response that was cut has no end to learn")
        return lines

    def _places(self) -> str:
        """A text that says how many files were read; empty for a single file, which the caller named."""
        num_empty = sum(not num_rows for num_rows in self.files.values())
        empty = f" ({num_empty} empty)" if num_empty else ""
        return f" from {len(self.files)} files{empty}" if len(self.files) > 1 else ""

    def report(self, digests: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
        """The content of the --stats file."""
        facts = self._all()
        return {
            "files": self.files,
            "rows": self.num_rows,
            "pairs": len(facts),
            "dropped": dict(self.drops),
            "errors": dict(self.errors),
            "first_places": self.first_places,
            "tokens": {name: _distribution(facts[name]) for name in ("prompt", "chosen", "rejected")},
            "truncated": _truncation(facts["cut"]),
            "prefix_rewrites": int(facts["rewritten"].sum()),
            "length_bias": _length_bias(facts),
            "duplicates": _duplicates(facts),
            **reported(self.notes),
            "digests": digests,
            "settings": settings,
        }

    def _all(self) -> np.ndarray:
        if len(self._facts) != 1:
            self._facts = [np.concatenate([np.empty(0, FACTS), *self._facts])]
        return self._facts[0]


def _counts(counter: Counter[str], what: str) -> str:
    details = ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items()))
    return f"{counter.total()} {what}" + (f" ({details})" if details else "")


def _distribution(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {"total": 0}
    values = np.percentile(lengths, _PERCENTILES)
    percentiles = {f"p{p}": round(float(v), 1) for p, v in zip(_PERCENTILES, values, strict=True)}
    return {"total": int(lengths.sum(dtype=np.int64)), "mean": round(float(lengths.mean()), 2), **percentiles}


def _truncation(cut: np.ndarray) -> dict[str, int]:
    flags = (("chosen", CUT_CHOSEN), ("rejected", CUT_REJECTED), ("prompt", CUT_PROMPT))
    return {name: int(np.count_nonzero(cut & flag)) for name, flag in flags}


def _length_bias(facts: np.ndarray) -> dict[str, float | None]:
    """How well the length of a response predicts the preference: shares of pairs, from 0 to 1, and a mean ratio.

    The ratio of a pair is the number of its chosen tokens over that of its rejected tokens.
    """
    if not len(facts):
        return {"chosen_longer": None, "rejected_longer": None, "same_length": None, "mean_ratio": None}
    chosen, rejected = facts["chosen"].astype(np.float64), facts["rejected"].astype(np.float64)
    return {
        "chosen_longer": round(float((chosen > rejected).mean()), 4),
        "rejected_longer": round(float((chosen < rejected).mean()), 4),
        "same_length": round(float((chosen == rejected).mean()), 4),
        "mean_ratio": round(float((chosen / np.maximum(rejected, 1)).mean()), 4),
    }


def _duplicates(facts: np.ndarray) -> dict[str, int]:
    """Counts of rows whose prompt came before, of rows whose pair came before, and of pairs that also occur swapped.

    A swapped pair has the chosen and the rejected response exchanged; its repetitions count once. Digests are compared.
    """
    prompt, chosen, rejected = (facts[f"{name}_digest"] for name in ("prompt", "chosen", "rejected"))
    ordered = prompt + _ODD * chosen + _ODDER * rejected  # a sum of digests modulo 2**64 is as good as a digest
    distinct, first = np.unique(ordered, return_index=True)
    unordered = (prompt + _ODD * (chosen + rejected))[first]
    return {
        "prompts": len(facts) - len(np.unique(prompt)),
        "pairs": len(facts) - len(distinct),
        "both_ways": len(distinct) - len(np.unique(unordered)),
    }

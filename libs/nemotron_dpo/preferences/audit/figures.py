"""Figures about pairs for --stats: lengths, how far length predicts the preference, what was cut, how their rewards stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemotron_dpo.preferences.audit.facts import (
    CUT_CHOSEN,
    CUT_PROMPT,
    CUT_REJECTED,
    INVERTED,
    REWARDED,
    SIDES,
    TIED,
    FactTable,
)
from nemotron_dpo.preferences.audit.findings import OddPairs

_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def report(table: FactTable, facts: np.ndarray, found: dict[str, OddPairs]) -> dict[str, Any]:
    """What --stats says of the pairs: figures of `facts`, of those that are written, and the places of all odd ones."""
    return {
        "tokens": {side: distribution(facts[side]) for side in SIDES},
        "tokens_before_truncation": {side: distribution(facts[f"whole_{side}"]) for side in SIDES},
        "truncated": truncation(facts["cut"]),
        "length_bias": length_bias(facts),
        "rewards": rewards(facts),
        "findings": {name: _places(table, finding) for name, finding in found.items()},
    }


def _places(table: FactTable, finding: OddPairs) -> list[Any]:
    """FILE:LINE of each pair; of a pair that repeats or contradicts another one, also the place of that."""
    if finding.others is None:
        return [table.place(row) for row in finding.rows]
    return [[table.place(row), table.place(other)] for row, other in zip(finding.rows, finding.others, strict=True)]


def distribution(lengths: np.ndarray) -> dict[str, float]:
    """Total, mean and percentiles of numbers of tokens."""
    if not len(lengths):
        return {"total": 0}
    values = np.percentile(lengths, _PERCENTILES)
    percentiles = {f"p{p}": round(float(v), 1) for p, v in zip(_PERCENTILES, values, strict=True)}
    return {"total": int(lengths.sum(dtype=np.int64)), "mean": round(float(lengths.mean()), 2), **percentiles}


def truncation(cut: np.ndarray) -> dict[str, int]:
    """How many pairs were cut, by side."""
    flags = (("chosen", CUT_CHOSEN), ("rejected", CUT_REJECTED), ("prompt", CUT_PROMPT))
    return {name: int(np.count_nonzero(cut & flag)) for name, flag in flags}


def length_bias(facts: np.ndarray) -> dict[str, float | None]:
    """How well the length of a response before truncation predicts the preference: shares of pairs, and a mean ratio.

    The ratio of a pair is the number of its chosen tokens over that of its rejected tokens.
    """
    if not len(facts):
        return {"chosen_longer": None, "rejected_longer": None, "same_length": None, "mean_ratio": None}
    chosen, rejected = facts["whole_chosen"].astype(np.float64), facts["whole_rejected"].astype(np.float64)
    return {
        "chosen_longer": round(float((chosen > rejected).mean()), 4),
        "rejected_longer": round(float((chosen < rejected).mean()), 4),
        "same_length": round(float((chosen == rejected).mean()), 4),
        "mean_ratio": round(float((chosen / np.maximum(rejected, 1)).mean()), 4),
    }


def rewards(facts: np.ndarray) -> dict[str, int]:
    """How many pairs have rewards, and how many of these agree with the choice, contradict it, or say neither."""
    number, inverted, tied = (int(np.count_nonzero(facts["odd"] & flag)) for flag in (REWARDED, INVERTED, TIED))
    return {"pairs": number, "agree": number - inverted - tied, "contradict": inverted, "tied": tied}

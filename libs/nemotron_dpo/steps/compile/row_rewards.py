"""The rewards of rows, looked for before anything runs: whether an objective that needs them has them, how they stand.

Only the first lines of plain JSONL are looked at. Of other data, dpo-train says it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.rewards import RECOGNISED, RowRewards, read_rewards

_LOOKED_AT = 8  # rows, because single ones may be dropped
_COMPARED = 200
_MOST_BYTES = 1 << 20  # of a line


@dataclass(frozen=True)
class _Recognised:
    """The columns that are named; where none are, those that are recognised count."""

    chosen_reward: str | None = None
    rejected_reward: str | None = None


def lacks_rewards(path: str) -> bool:
    """Whether the first rows of the file, all of them, have no rewards in columns that are recognised."""
    rows = list(islice(_rows(Path(path)), _LOOKED_AT))
    return bool(rows) and not any(_has_rewards(row) for row in rows)


def first_gaps(path: str, chosen_key: str | None, rejected_key: str | None) -> list[float]:
    """By how much the chosen response's reward is the higher one, in those of the first rows of the file that have both."""
    if (chosen_key is None) != (rejected_key is None):  # which is refused elsewhere
        return []
    keys = _Recognised(chosen_key, rejected_key)
    found = [_rewards(row, keys) for row in islice(_rows(Path(path)), _COMPARED)]
    return [gap.chosen - gap.rejected for gap in found if gap and gap.chosen is not None and gap.rejected is not None]


def recognised() -> str:
    """The columns that are recognised, for a person."""
    return ", ".join(f"{chosen} and {rejected}" for chosen, rejected in RECOGNISED[:2])


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a plain JSONL file, up to the first line that is none."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(_MOST_BYTES):
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not isinstance(row, dict):
                return
            yield row


def _has_rewards(row: Mapping[str, Any]) -> bool:
    rewards = _rewards(row, _Recognised())
    return rewards is None or rewards.chosen is not None


def _rewards(row: Mapping[str, Any], keys: _Recognised) -> RowRewards | None:
    """The rewards of a row; None where it is no such row, which preference-tokenize says."""
    row_format = "ranked" if "completions" in row else "helpsteer3" if "overall_preference" in row else "pair"
    try:
        return read_rewards(row, row_format, keys)
    except (RowProblem, KeyError, TypeError, ValueError, AttributeError):
        return None

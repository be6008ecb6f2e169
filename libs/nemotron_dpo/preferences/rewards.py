"""Reads what a row says that its two responses are worth: objectives such as odpo need it, a report shows it.

Columns that the user names must hold a number in every row. Without such names, columns that published data sets use are
recognised, and a row that has no numbers there has no rewards:

pair, conversation, transcript  chosen_score and rejected_score (or score_chosen and so on), also with rating and reward
ranked                          `reward` of each completion
helpsteer3                      the strength of overall_preference, 1 to 3, for the chosen response and 0 for the rejected one
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nemotron_dpo.preferences.problems import RowProblem, Unreadable, describe, missing

_WORDS = ("score", "rating", "reward")
RECOGNISED = tuple(
    names for word in _WORDS for names in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}"))
)
_NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", re.ASCII)
_MOST = float.fromhex("0x1.fffffep+127")  # the largest that float32 holds


@dataclass(frozen=True, slots=True)
class RowRewards:
    """The rewards of both responses, or of neither.

    `columns` are the two columns of the row where they were looked for, `of` names these to a person; both are empty where the
    row has none.
    """

    chosen: float | None = None
    rejected: float | None = None
    of: str = ""
    columns: tuple[str, ...] = ()


NONE = RowRewards()


class RewardKeys(Protocol):
    """The columns that the user named, or None for those that are recognised."""

    @property
    def chosen_reward(self) -> str | None: ...

    @property
    def rejected_reward(self) -> str | None: ...


def read_rewards(row: Mapping[str, Any], row_format: str, keys: RewardKeys) -> RowRewards:
    """The rewards of `row`, which is known to be a pair of the form `row_format`.

    Raises RowProblem where a column that the user named is missing or holds no finite number.
    """
    if row_format == "ranked":
        chosen, rejected = sorted(row["completions"], key=lambda completion: completion["rank"])
        return _of_completions(chosen, rejected, keys)
    if keys.chosen_reward is not None and keys.rejected_reward is not None:
        values = (_asked(row, keys.chosen_reward, "chosen"), _asked(row, keys.rejected_reward, "rejected"))
        columns = (keys.chosen_reward, keys.rejected_reward)
        return RowRewards(*values, ", ".join(dict.fromkeys(columns)), columns)
    if row_format == "helpsteer3":
        strength = _number(abs(row["overall_preference"]))
        return RowRewards(strength, strength and 0.0, "overall_preference")
    return next((_of_columns(row, names) for names in RECOGNISED if names[0] in row and names[1] in row), NONE)


def _of_completions(chosen: Mapping[str, Any], rejected: Mapping[str, Any], keys: RewardKeys) -> RowRewards:
    if keys.chosen_reward is not None and keys.rejected_reward is not None:
        values = (_asked(chosen, keys.chosen_reward, "chosen"), _asked(rejected, keys.rejected_reward, "rejected"))
        return RowRewards(*values, f"completions[].{keys.chosen_reward}")
    if "reward" not in chosen and "reward" not in rejected:
        return NONE
    values = (_number(chosen.get("reward")), _number(rejected.get("reward")))
    return RowRewards(*(values if None not in values else (None, None)), "completions[].reward")


def _of_columns(row: Mapping[str, Any], names: tuple[str, str]) -> RowRewards:
    values = (_number(row[names[0]]), _number(row[names[1]]))
    return RowRewards(*(values if None not in values else (None, None)), ", ".join(names), names)


def _asked(row: Mapping[str, Any], key: str, side: str) -> float:
    if key not in row:
        raise missing(key, row, f"{side}-reward")
    value = row[key]
    if isinstance(value, Unreadable):
        raise RowProblem(value.reason, value.message, field=key)
    number = _number(value)
    if number is None:
        shown = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else describe(value)
        raise RowProblem("wrong type", f"is {shown} where a finite number is due", field=key)
    return number


def _number(value: object) -> float | None:
    """The number that `value` is, or that it spells, as every cell of a CSV is text; None for anything else."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST:
        return None
    return float(value)

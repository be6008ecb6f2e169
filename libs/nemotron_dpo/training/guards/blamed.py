"""The pairs that a finding was seen on most, by id and input line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nemotron_dpo.training.pair_values import PairValues

NUM_PAIRS = 3  # that are named


@dataclass(frozen=True)
class Blamed:
    """A pair: its id in hexadecimal digits, where the user finds it, and what was measured of it, by name."""

    pair_id: str
    line: int
    source: str
    measured: dict[str, float]

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.3g}" for name, value in self.measured.items())
        return f"line {self.line}{f' of {self.source}' if self.source else ''} (pair {self.pair_id[:12]}: {values})"


def worst(pairs: PairValues | None, by: str, *, compares: bool) -> list[Blamed]:
    """Those of `pairs` where `by` ("loss", "margin", "chosen" or "log_ratio") is worst, the worst first.

    `compares`: the objective compares responses. Where it does not, or has no loss of each pair, the probability of the chosen
    response stands for it. A pair whose value is not finite is worse than any other.
    """
    if pairs is None or not len(pairs.rows):
        return []
    badness = np.nan_to_num(_badness(pairs, by if compares else "chosen"), nan=np.inf)
    order = np.argsort(-badness, kind="stable")[:NUM_PAIRS]
    return [_blamed(pairs, int(place), compares=compares) for place in order]


def _badness(pairs: PairValues, by: str) -> np.ndarray:
    values = pairs.by_name
    if by == "margin" and "margin" in values:
        return -values["margin"]
    if by == "log_ratio" and "chosen_log_ratio" in values:
        return np.maximum(*(np.abs(_per_token(pairs, side)) for side in ("chosen", "rejected")))
    if by == "loss" and "loss" in values:
        return values["loss"]
    return -_per_token(pairs, "chosen")


def _per_token(pairs: PairValues, side: str) -> np.ndarray:
    values = pairs.by_name.get(f"{side}_log_ratio", pairs.by_name[f"{side}_logp"])
    return values / getattr(pairs.data, side).lengths[pairs.rows]


def _blamed(pairs: PairValues, place: int, *, compares: bool) -> Blamed:
    row, data = pairs.rows[place], pairs.data
    names = ("loss", "chosen_log_ratio", "rejected_log_ratio") if compares else ("chosen_log_ratio",)
    found = {name: float(pairs.by_name[name][place]) for name in names if name in pairs.by_name}
    if "chosen_log_ratio" not in found:
        sides = ("chosen_logp", "rejected_logp") if compares else ("chosen_logp",)
        found |= {name: float(pairs.by_name[name][place]) for name in sides}
    return Blamed(data.pair_ids[row].hex(), int(data.source_lines[row]), data.file(row), found)

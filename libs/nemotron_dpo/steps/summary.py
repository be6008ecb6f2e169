"""The short table at the end of a run, read from the metrics.jsonl that dpo-train wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from nemotron_dpo.steps.text import table

Row = Mapping[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.jsonl; empty where the file does not exist. A line that a crash cut short is skipped."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return rows


def summarize(rows: Sequence[Row], checkpoint: Path | None) -> str:
    """A table of the first and last loss, accuracy and reward margin, with the loss and accuracy of each validation set.

    Below it stand the number of steps, the speed in pairs per second, and the path of the trained policy.
    """
    train = [row for row in rows if "train/loss" in row]
    lines = [_series(train, "loss", "train/loss"), _series(train, "accuracy", "train/accuracy")]
    margins = [_marked(margin, row) for row in train if (margin := _margin(row)) is not None]
    lines.append(("reward margin", margins[0], margins[-1]) if margins else None)
    for name in sorted({key.rpartition("/")[0] for row in rows for key in row if key.startswith("validation-")}):
        label = name.replace("validation-default", "validation").replace("validation-", "validation ")
        lines += [_series(rows, f"{label} {metric}", f"{name}/{metric}") for metric in ("loss", "accuracy")]
    shown = table([line for line in lines if line], head=("", "first", "last"))
    steps = f"{len(train)} steps" if len(train) != 1 else "1 step"
    facts = [("steps", steps.split()[0]), ("pairs/s", _speed(train)), ("checkpoint", str(checkpoint or "none"))]
    legend = "~ is noise: what rounding alone may make of it\n\n" if "~" in shown else ""
    return f"{shown}\n\n{legend}{table(facts)}"


def _series(rows: Sequence[Row], label: str, key: str) -> tuple[str, str, str] | None:
    return _cells(label, [row[key] for row in rows if row.get(key) is not None])


def _cells(label: str, values: Sequence[float]) -> tuple[str, str, str] | None:
    return (label, f"{values[0]:.4f}", f"{values[-1]:.4f}") if values else None


def _margin(row: Row) -> float | None:
    chosen, rejected = row.get("train/rewards_chosen_mean"), row.get("train/rewards_rejected_mean")
    return None if chosen is None or rejected is None else chosen - rejected


def _marked(margin: float, row: Row) -> str:
    """The margin as text, with "~" before it where it is below its noise floor.

    The record has the noise floor of one mean reward. The margin is a difference of two, so its floor is sqrt(2) times that.
    """
    shown, floor = f"{margin:.4f}", sqrt(2) * row.get("train/reward_noise_floor", 0.0)
    return f"~{shown}" if abs(margin) < floor and float(shown) else shown


def _speed(train: Sequence[Row]) -> str:
    """The median of pairs per second over the steps, without the first step, which warms up, unless it is the only one."""
    speeds = [row["timing/train/pairs_per_sec"] for row in train if row.get("timing/train/pairs_per_sec") is not None]
    return f"{median(speeds[1:] or speeds):.1f}" if speeds else "unknown"

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
    """The rows of metrics.jsonl, none where there is no such file; a line cut by a crash is left out."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return rows


def summarize(rows: Sequence[Row], checkpoint: Path | None) -> str:
    """First and last loss, accuracy and reward margin, each validation set's, speed, and where the policy is."""
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
    """With "~" where it is below the noise floor: that of a difference of two means, each of which is known to the record's."""
    shown, floor = f"{margin:.4f}", sqrt(2) * row.get("train/reward_noise_floor", 0.0)
    return f"~{shown}" if abs(margin) < floor and float(shown) else shown


def _speed(train: Sequence[Row]) -> str:
    """The median over steps, the first left out where there are more: it warms up."""
    speeds = [row["timing/train/pairs_per_sec"] for row in train if row.get("timing/train/pairs_per_sec") is not None]
    return f"{median(speeds[1:] or speeds):.1f}" if speeds else "unknown"

"""Delete the checkpoints that NeMo-RL's rules do not keep."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import orjson

from nemotron_dpo.errors import UserError


def prune(
    checkpoint_dir: Path,
    keep_top_k: int | None,
    metric_name: str | None,
    *,
    higher_is_better: bool,
    period: int | None = None,
    keep_latest_k: int | None = None,
) -> dict[Path, bool]:
    """Delete all step folders but the best `keep_top_k` by `metric_name`; the deleted folders, and whether each had the metric.

    A newer checkpoint wins a tie, a checkpoint without the metric counts as worst, and the newest one is always kept. Without a
    `metric_name` the newest are the best. If `keep_top_k` is None, all are kept. With a `period` only its multiples are kept
    so; the others are there to go on from, and of all the newest `keep_latest_k` stay. Raises UserError where a
    training_info.json is missing or damaged, and deletes nothing then.
    """
    if keep_top_k is None and keep_latest_k is None:
        return {}
    folders = step_folders(checkpoint_dir)
    newest_first = folders[::-1]
    ranked = [folder for folder in newest_first if period is None or _step(folder) % period == 0]
    if keep_top_k is not None:
        ranked = sorted(ranked, key=lambda folder: _badness(folder, metric_name, higher_is_better))[:keep_top_k]
    kept = {*ranked, *newest_first[: max(1, keep_latest_k or 0)]}
    doomed = {
        folder: metric_name is None or _badness(folder, metric_name, higher_is_better) < math.inf
        for folder in folders
        if folder not in kept
    }
    for folder in doomed:
        shutil.rmtree(folder)
    return doomed


def step_folders(checkpoint_dir: Path) -> list[Path]:
    """The existing step_N folders, oldest first."""
    numbers = [path.name.removeprefix("step_") for path in checkpoint_dir.glob("step_*")]
    return [checkpoint_dir / f"step_{step}" for step in sorted(int(number) for number in numbers if number.isdigit())]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _badness(folder: Path, metric_name: str | None, higher_is_better: bool) -> float:
    if metric_name is None:
        return 0.0
    value = _measured(folder).get(metric_name)
    if value is None or math.isnan(value):
        return math.inf
    return -value if higher_is_better else value


def _measured(folder: Path) -> Mapping[str, float | None]:
    """The numbers of training_info.json. Raises UserError if it is damaged or of another step."""
    path, step = folder / "training_info.json", _step(folder)
    try:
        info = {name: None if value is None else float(value) for name, value in orjson.loads(path.read_bytes()).items()}
    except (OSError, orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
        info = {"total_steps": math.nan}
    if info.get("total_steps", step) != step:
        what = f"is damaged or not of {folder.name}, so the best checkpoints are unknown and none is removed"
        raise UserError(what, source=path, remedy=f"put it right, or move {folder.name} elsewhere")
    return info

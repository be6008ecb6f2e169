"""Delete the checkpoints that NeMo-RL's rules do not keep."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from nemotron_dpo.step_folders import badness, step_folders, step_of


def prune(
    checkpoint_dir: Path,
    keep_top_k: int | None,
    metric_name: str | None,
    *,
    higher_is_better: bool,
    period: int | None = None,
    keep_latest_k: int | None = None,
    needed: Callable[[Sequence[int]], Collection[int]] = lambda steps: (),
) -> dict[Path, bool]:
    """Delete all step folders but the best `keep_top_k` by `metric_name`; the deleted folders, and whether each had the metric.

    A newer checkpoint wins a tie, a checkpoint without the metric counts as worst, and the newest one is always kept. Without a
    `metric_name` the newest are the best. If `keep_top_k` is None, all are kept. With a `period` only its multiples are kept
    so; the others are there to go on from, and of all the newest `keep_latest_k` stay. Those that are `needed` of all steps
    that there are stay besides. Raises UserError where a
    training_info.json is missing or damaged, and deletes nothing then.
    """
    if keep_top_k is None and keep_latest_k is None:
        return {}
    folders = step_folders(checkpoint_dir)
    newest_first = folders[::-1]
    ranked = [folder for folder in newest_first if period is None or step_of(folder) % period == 0]
    if keep_top_k is not None:
        ranked = sorted(ranked, key=lambda folder: badness(folder, metric_name, higher_is_better))[:keep_top_k]
    kept = {*ranked, *newest_first[: max(1, keep_latest_k or 0)]}
    wanted = set(needed([step_of(folder) for folder in folders]))
    kept |= {folder for folder in folders if step_of(folder) in wanted}
    doomed = {
        folder: metric_name is None or badness(folder, metric_name, higher_is_better) < math.inf
        for folder in folders
        if folder not in kept
    }
    for folder in doomed:
        remove_whole(folder)
    return doomed


def remove_whole(folder: Path) -> None:
    """Delete a step folder. It loses its name first, so that a kill leaves no half of a checkpoint under it."""
    nameless = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(nameless, ignore_errors=True)
    folder.rename(nameless)
    shutil.rmtree(nameless)


def remove_unfinished(checkpoint_dir: Path) -> None:
    """Delete what a killed run was writing or deleting in `checkpoint_dir`, in which no other run works now."""
    for folder in checkpoint_dir.glob(".step_*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)

"""The folder of a run as dpo-train leaves it: its step_N folders, what was measured at each, and which is the best."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo import machine_errors, plain_files
from nemotron_dpo.documents import read_yaml, yaml_mapping
from nemotron_dpo.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
RESUME = "resume.json"  # of a step that a run can go on from: it lists digests of the other files
LAST, BEST = "last", "best"


def step_folders(checkpoint_dir: Path) -> list[Path]:
    """The existing step_N folders, oldest first."""
    numbers = [path.name.removeprefix("step_") for path in checkpoint_dir.glob("step_*")]
    return [checkpoint_dir / f"step_{step}" for step in sorted(int(number) for number in numbers if number.isdigit())]


def step_of(folder: Path) -> int:
    """N of the folder step_N."""
    return int(folder.name.removeprefix("step_"))


def badness(folder: Path, metric_name: str | None, higher_is_better: bool) -> float:
    """What a step is ranked by, the less the better: infinity where it was not measured, 0 where there is no metric.

    Raises UserError where training_info.json is damaged or of another step.
    """
    if metric_name is None:
        return 0.0
    value = measured(folder).get(metric_name)
    if value is None or math.isnan(value):
        return math.inf
    return -value if higher_is_better else value


def measured(folder: Path) -> Mapping[str, float | None]:
    """The numbers of training_info.json. Raises UserError if it is damaged or of another step."""
    path, step = folder / "training_info.json", step_of(folder)
    try:
        plain_files.refuse_others(path)
        info = {name: None if value is None else float(value) for name, value in json.loads(path.read_bytes()).items()}
        info = info if is_as_saved(path) else {"total_steps": math.nan}
    except (*machine_errors.NOT_THERE, AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        info = {"total_steps": math.nan}
    if info.get("total_steps", step) != step:
        what = f"is damaged or not of {folder.name}, so the best checkpoints are unknown and none is removed"
        raise UserError(what, source=path, remedy=f"put it right, or move {folder.name} elsewhere")
    return info


def is_as_saved(path: Path) -> bool:
    """Whether a file that lies directly in a step folder, or is none, is what was saved with the step.

    Only the list of resume.json can tell: without one, or where it does not name the file, it is. Raises OSError, and UserError
    where that list is no plain file.
    """
    try:
        plain_files.refuse_others(path.parent / RESUME)
        digest = json.loads((path.parent / RESUME).read_bytes())["files"].get(path.name)
        return digest is None or (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest)
    except (*machine_errors.NOT_THERE, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return True


def refuse_changed(path: Path) -> None:
    """Raise UserError where a file directly in a step folder is not what was saved with the step."""
    if not is_as_saved(path):
        what = f"is not what was saved with {path.parent.name}: it is damaged, was changed or is gone"
        raise UserError(what, source=path, remedy=f"copy it again; without {RESUME} beside it nothing is compared")


def policy_of(source: Path, which: str) -> Path | None:
    """The policy folder in `source`: of a step_N folder its own, of a run, its checkpoints or its job that of step `which`.

    `which` is "last", "best" by the run's own checkpointing.metric_name, or a number. None where `source` is none of these.
    Raises UserError where there is no such step.
    """
    if (source / "job.yaml").is_file() and (source / "run").is_dir():
        source = source / "run"
    if (source / "policy" / TRACKER).is_file():
        if which not in (LAST, str(step_of(source)) if source.name.startswith("step_") else LAST):
            raise UserError(f"is one step of a run, and not step {which}", source=source, remedy="name the run")
        return source / "policy"
    folders = sorted([*step_folders(source / "checkpoints"), *step_folders(source)], key=step_of) or _elsewhere(source)
    if not folders:
        return None
    return _step(folders, which) / "policy"


def _elsewhere(run: Path) -> list[Path]:
    """The steps of a job that keeps them outside its folder, where checkpointing.checkpoint_dir says."""
    job = run.parent
    try:
        folder = yaml_mapping(job / "train.yaml")["checkpointing"]["checkpoint_dir"] if run.name == "run" else None
        return step_folders(Path(yaml_mapping(job / "job.yaml")["folder"]) / folder) if folder else []
    except (*machine_errors.NOT_THERE, KeyError, TypeError, ValueError):
        return []


def _step(folders: list[Path], which: str) -> Path:
    if which == LAST:
        return folders[-1]
    if which == BEST:
        return best_of(folders)
    found = next((folder for folder in folders if str(step_of(folder)) == which), None)
    if found is None:
        there = ", ".join(str(step_of(folder)) for folder in folders)
        raise UserError(f"has no checkpoint of step {which}", source=folders[0].parent, remedy=f"there are those of {there}")
    return found


def best_of(folders: list[Path]) -> Path:
    """The best of some steps of a run by its checkpointing.metric_name, of equals the newest.

    Raises UserError where the run ranks its checkpoints by no metric, or none of them has it.
    """
    name, higher = ranking(folders[-1])
    remedy = "name a step, or last"
    if name is None:
        raise UserError("no step is the best: checkpointing.metric_name is null", source=folders[-1].parent, remedy=remedy)
    worth = {folder: badness(folder, name, higher) for folder in folders[::-1]}
    best = min(worth, key=lambda folder: worth[folder])
    if worth[best] == math.inf:
        raise UserError(f"no step is the best: none was measured by {name}", source=folders[-1].parent, remedy=remedy)
    return best


def ranking(folder: Path) -> tuple[str | None, bool]:
    """(checkpointing.metric_name, higher_is_better) of the run that wrote the step `folder`."""
    import yaml

    path = folder / "config.yaml"
    refuse_changed(path)
    try:
        plain_files.refuse_others(path)
        keep: Any = read_yaml(path)["checkpointing"]
        name, higher = keep["metric_name"], keep["higher_is_better"]
    except (*machine_errors.NOT_THERE, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError("does not say by what the run ranks its steps", source=path, remedy="name a step, or last") from None
    return (None if name is None else str(name)), bool(higher)

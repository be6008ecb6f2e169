"""Replace what stands for a folder in the paths of a config: `~`, and /nemo_run where nothing is mounted there.

Loading leaves both, since a run on a cluster means the home folder there, and may have something mounted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nemotron_dpo.config.dpo import is_built
from nemotron_dpo.paths import expand_home

T = TypeVar("T")
# Where NeMo-Run mounts the job folder in a container; NVIDIA's own configs write there.
NEMO_RUN = "/nemo_run"


def with_home(config: T) -> T:
    """`config`, a dataclass, with home folders in the place of ~ in every field that names a path, also further down.

    Raises UserError for the home of a user that does not exist.
    """
    return _with_paths(config, expand_home)


def with_job_folder(config: T, job: Path) -> T:
    """`config`, a dataclass, with `job` in the place of /nemo_run."""
    return _with_paths(config, lambda path: _in_job(path, job))


def _in_job(path: str, job: Path) -> str:
    return f"{job}{path.removeprefix(NEMO_RUN)}" if path == NEMO_RUN or path.startswith(f"{NEMO_RUN}/") else path


def _with_paths(config: T, change: Callable[[str], str]) -> T:
    """`config` with `change` made in every field that names a path."""
    changed = {
        item.name: _changed(getattr(config, item.name), change, item.metadata.get("is_path", False))
        for item in fields(config)  # type: ignore[arg-type] - T is a dataclass, which TypeVar cannot say
        if is_built(item)
    }
    return replace(config, **changed)  # type: ignore[type-var] - likewise


def _changed(value: Any, change: Callable[[str], str], is_path: bool) -> Any:
    if is_dataclass(value):
        return _with_paths(value, change)
    if isinstance(value, tuple):
        return tuple(_changed(item, change, is_path) for item in value)
    return change(value) if is_path and isinstance(value, str) else value

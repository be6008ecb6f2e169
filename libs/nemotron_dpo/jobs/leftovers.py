"""What a removal leaves that was interrupted or refused: `.JOB.removed`, which is no job, beside the jobs.

job.yaml goes last, so what has that name and no job.yaml, and is not empty, was never a job and stays.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemotron_dpo import machine_errors
from nemotron_dpo.errors import UserError

RECORD = "job.yaml"
_END = ".removed"
_NAME_BYTES = 240  # of 255 that file systems allow


def take_away(folder: Path) -> Path:
    """Rename the folder of a job, at once: what is left of a removal that is interrupted is no job. Its new name."""
    short = os.fsdecode(os.fsencode(folder.name)[:_NAME_BYTES])
    names = (f".{short}{'' if n == 1 else f'.{n}'}{_END}" for n in itertools.count(1))
    trash = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
    os.rename(folder, trash)
    return trash


def leftovers(root: Path) -> list[Path]:
    """What earlier removals left beside the jobs in `root`."""
    return sorted(
        path for path in root.iterdir() if is_leftover(path) and path.is_dir() and not path.is_symlink() and _was_job(path)
    )


def is_leftover(path: Path) -> bool:
    """Whether `path` has the name of one."""
    return path.name.startswith(".") and path.name.endswith(_END)


def clear(trash: Path) -> None:
    """Remove what `take_away` or `leftovers` found, as far as that can be. Another process may do the same.

    Raises UserError, which says where the rest lies, for the first that cannot be removed.
    """
    refused: list[tuple[str, OSError]] = []

    def note(_: object, path: str, info: tuple[Any, Any, Any]) -> None:
        if not isinstance(info[1], FileNotFoundError):
            refused.append((path, info[1]))

    try:
        for entry in [entry for entry in os.scandir(trash) if entry.name != RECORD]:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, onerror=note)
            else:
                _unlink(entry.path, note)
    except OSError:
        note(os.scandir, str(trash), sys.exc_info())
    if not refused:
        shutil.rmtree(trash, onerror=note)
    if refused:
        path, error = refused[0]
        why = machine_errors.as_user_error(machine_errors.at(error, os.path.abspath(path)))
        remedy = f"what is left of the job lies in {trash.absolute()}; dpo-runs rm or prune goes on with it"
        raise UserError(why.message, source=why.source, remedy=remedy)


def _unlink(path: str, note: Callable[[object, str, tuple[Any, Any, Any]], None]) -> None:
    try:
        os.unlink(path)
    except OSError:
        note(os.unlink, path, sys.exc_info())


def _was_job(path: Path) -> bool:
    try:
        return (path / RECORD).is_file() or not any(path.iterdir())
    except machine_errors.NOT_THERE:  # another process has removed it
        return False

"""Let only one run at a time work in a folder. The lock is released when its process ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nemotron_dpo import locks
from nemotron_dpo.errors import UserError


@contextlib.contextmanager
def only_run(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of `folder` during the block. Create the folder and its parents if they are missing.

    Of the folders that were created, those that the block leaves empty are removed. Raises UserError if another process holds
    the lock. On a file system without locks, `say` gets a warning and the block runs without one.
    """

    def refusal(holder: str) -> UserError:
        remedy = "wait for it, or name another folder"
        return UserError(f"another dpo-train works in it ({holder})", source=folder, remedy=remedy)

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    warning = f"warning: {folder}: its file system has no locks: no other run may work in it"
    try:
        with locks.held(folder / locks.OF_FOLDER, folder, refusal, lambda: say(warning)):
            yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()

"""state.json: how a job stands, for whoever looks into its folder while it runs or long after.

`status` is `running`, `submitted` (to a cluster), `done`, `failed` or `stopped` (by a person or a signal), `reason` says by
what, `stage` names the last stage that began. `made` has the cache's key of each stage's outputs. A job that was killed leaves
`running`: `host`, `pid` and `process` say whom to look for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo import processes
from nemotron_dpo.published import replacing
from nemotron_dpo.steps.compile.stages import Stage

FILE = "state.json"


class JobStateFile:
    """Writes the file anew, whole each time, at each change."""

    def __init__(self, job: Path, status: str = "running") -> None:
        self._path = job / FILE
        self._facts: dict[str, Any] = {
            "status": status,
            "reason": None,
            "exit": None,
            "stage": None,
            "started": _now(),
            "updated": None,
            **processes.this_one(),
            "made": {},
        }
        self._write()

    def enter(self, stage: Stage) -> None:
        """Note that `stage` begins."""
        self._facts["stage"] = stage.name
        self._write()

    def made(self, stage: Stage, key: str | None) -> None:
        """Note what the cache calls the outputs of `stage`, which are there."""
        if key is not None:
            self._facts["made"][stage.name] = {"key": key, "outputs": [str(path) for path in stage.outputs]}
            self._write()

    def end(self, status: str, exit_status: int, reason: str | None = None) -> None:
        """Note how the job ended."""
        self._facts |= {"status": status, "exit": exit_status, "reason": reason}
        self._write()

    def _write(self) -> None:
        facts = self._facts | {"updated": _now()}
        with replacing(self._path) as temporary:
            temporary.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@contextmanager
def stands(job: Path) -> Iterator[JobStateFile]:
    """The state of a job that runs here for the block; how it ends is noted, where the block has not done so."""
    state = JobStateFile(job)
    try:
        yield state
    except Exception as error:
        state.end("failed", 1, str(error) or type(error).__name__)
        raise
    except BaseException as stop:  # Ctrl-C, or SIGTERM as the programs raise it
        state.end("stopped", 130 if isinstance(stop, KeyboardInterrupt) else 143, "interrupted")
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

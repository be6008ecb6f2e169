"""run.json: how a run stands, and what it is, for whoever looks into its folder while it runs or long after.

`status` is `running`, `done`, `stopped` (by a signal, the time limit or dpo.on_divergence) or `failed`; `reason` says by what.
`alarms` has what the guards said: kind, step, pairs, what to try, and the last step that was good. `validation` has the number
of pairs of each set, and how many of them are trained on as well. A process that was killed leaves `running`: `host`, `pid` and
`process` say whom to look for, and the run that goes on from there lists it under `earlier` as `killed`.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any

import orjson

from nemotron_dpo import processes, published
from nemotron_dpo.run_state import read_json
from nemotron_dpo.streams import published_file
from nemotron_dpo.training.record import Record
from nemotron_dpo.training.sinks import RecordedRun

NAME = "run.json"
_SECONDS = 10.0  # between two writings, but for the first and the last


def open_sink(run: RecordedRun) -> RunFile:
    """The run file of `run`, which every run has."""
    return RunFile(run)


class RunFile:
    """Writes the file anew, whole each time, when the run begins, at most every ten seconds, and when it ends."""

    def __init__(self, run: RecordedRun) -> None:
        self._run, self._path, self._written = run, run.folder / NAME, 0.0
        self._facts: dict[str, Any] = {
            "status": "running",
            "reason": None,
            "step": run.done,
            "started": _now(),
            "updated": None,
            **processes.this_one(),
            "folder": str(Path.cwd()),
            **run.facts,
            "lineage": dict(run.lineage),
            "earlier": _earlier(self._path) if run.done else [],
        }
        self._write()

    def write(self, record: Record) -> None:
        """Note the step of `record`."""
        self._facts["step"] = record.step
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def sync(self) -> None:
        """Nothing: a checkpoint says itself of which step it is."""

    def close(self, *, failed: bool = False) -> None:
        """Note how the run ended."""
        error = sys.exc_info()[1] if failed else None
        stopped = self._run.stopped_by() if not failed else signal_of(error) if error else None
        self._facts["status"] = "stopped" if stopped else "failed" if failed else "done"
        self._facts["reason"] = stopped or ((str(error) or type(error).__name__) if error else None)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        _publish(self._path, self._facts | {"alarms": [dict(one) for one in self._run.alarms()]})


def settle(folder: Path) -> None:
    """Note that a run is done whose last step is saved, and whose process was killed behind that, before it could say so.

    What that process was writing then is removed.
    """
    path = folder / NAME
    published.sweep(folder)
    facts = read_json(path)
    if facts.get("status") == "running":
        _publish(path, {**facts, "status": "done", "earlier": _earlier(path)})


def signal_of(error: BaseException) -> str | None:
    """The signal that `error` was raised for, as `cli.raise_terminated` and Python do; None where it is a failure."""
    if isinstance(error, (Exception, SystemExit)):
        return None
    number = SIGINT if isinstance(error, KeyboardInterrupt) else next(iter(error.args), None)
    return Signals(number).name if isinstance(number, int) and number in set(Signals) else None


def _publish(path: Path, facts: dict[str, Any]) -> None:
    with published_file(path) as file:
        file.write(orjson.dumps(facts | {"updated": _now()}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The processes that worked at this run before, the last one at the end."""
    before = read_json(path)
    try:
        one = {name: before[name] for name in ("status", "reason", "step", "started", "updated", "host", "pid")}
        earlier = list(before["earlier"])
    except (KeyError, TypeError):
        return []
    if one["status"] == "running":  # it holds the folder's lock no more, so it ended without a word
        one["status"] = "killed"
    return [*earlier, one]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

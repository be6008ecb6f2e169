"""trackers.json in the run folder: which log folder a run has, when it began, and what each tracker calls it.

A resumed run goes on in them. One that starts over, as a run that was killed before its first checkpoint, gets new ones.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo.streams import published_file

FILE = "trackers.json"


@dataclass(frozen=True)
class TrackerMemory:
    """What is remembered of a run's trackers. experiment: the name of its folder in the log folder. known: by tracker."""

    path: Path
    experiment: str
    started: float
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, run_folder: Path, log_dir: Path, *, resumed: bool, say: Callable[[str], object]) -> TrackerMemory:
        """That of the run in `run_folder`, read where it is `resumed`, else begun; its folder in `log_dir` exists then."""
        path = run_folder / FILE
        memory = _read(path, say) if resumed and path.is_file() else None
        if memory is None:
            memory = cls(path, _next_experiment(log_dir), time.time())
            memory._write()
        (log_dir / memory.experiment).mkdir(parents=True, exist_ok=True)
        return memory

    def remember(self, tracker: str, known: Mapping[str, Any]) -> None:
        """Keep what `tracker` calls its run."""
        with self._lock:
            self.known[tracker] = dict(known)
            self._write()

    def _write(self) -> None:
        tree = {"experiment": self.experiment, "started": self.started, "trackers": self.known}
        with published_file(self.path) as file:
            file.write(orjson.dumps(tree, option=orjson.OPT_INDENT_2))


def _read(path: Path, say: Callable[[str], object]) -> TrackerMemory | None:
    try:
        tree = orjson.loads(path.read_bytes())
        experiment, started, known = str(tree["experiment"]), float(tree["started"]), dict(tree["trackers"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        say(f"warning: {path}: is damaged: the trackers begin new runs")
        return None
    return TrackerMemory(path, experiment, started, known)


def _next_experiment(log_dir: Path) -> str:
    """Make the folder exp_NNN, its number one above the highest there, as NeMo-RL does; no other run gets the same."""
    log_dir.mkdir(parents=True, exist_ok=True)
    numbers = [int(found[1]) for path in log_dir.glob("exp_*") if (found := re.fullmatch(r"exp_(\d+)", path.name))]
    number = max(numbers, default=0)
    while True:
        number += 1
        try:
            (log_dir / f"exp_{number:03d}").mkdir()
        except FileExistsError:
            continue
        return f"exp_{number:03d}"

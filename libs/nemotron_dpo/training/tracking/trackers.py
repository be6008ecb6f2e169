"""All trackers of a run as one sink: open, fed, and ended together, so that their deadlines do not add up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.feed import Feed
from nemotron_dpo.training.tracking.host import CLOSE_SECONDS
from nemotron_dpo.training.tracking.memory import TrackerMemory
from nemotron_dpo.training.tracking.monitor import Monitor

# What trackers of a run have that failed or was interrupted. Somebody waits for its end, or something: between SIGTERM and
# SIGKILL Slurm and torchrun leave 30 seconds.
_HURRIED_SECONDS = 10.0


@dataclass(frozen=True)
class Trackers:
    """Feeds of a run and, where it is asked for, the figures of the machine; a sink."""

    feeds: Sequence[Feed]
    monitor: Monitor | None = None
    is_hurried: Callable[[], bool] = lambda: False

    def write(self, record: Record) -> None:
        """Hand `record` to each."""
        for feed in self.feeds:
            feed.write(record)

    def sync(self) -> None:
        """Nothing: what a crash takes from a tracker, metrics.jsonl has."""

    def close(self, *, failed: bool = False) -> None:
        """End them, waiting for all together until the deadline."""
        with contextlib.ExitStack() as stack:
            for feed in self.feeds:
                stack.callback(feed.kill)  # also where somebody has enough of waiting
            if self.monitor is not None:
                self.monitor.stop()
            deadline = time.monotonic() + (_HURRIED_SECONDS if failed or self.is_hurried() else CLOSE_SECONDS)
            for feed in self.feeds:
                feed.end(failed=failed)
            for feed in self.feeds:
                feed.wait(deadline)


def open_trackers(
    names: Sequence[str],
    folder: Path,
    logger: Mapping[str, Any],
    done: int,
    facts: Mapping[str, Any],
    say: Callable[[str], object],
    is_hurried: Callable[[], bool],
) -> Trackers:
    """Start the trackers `names` of the run in `folder`, of which `done` steps were taken before.

    logger: the `logger.*` settings. facts: `config` and `lineage` of the run. is_hurried: whether the run ends early.
    """
    log_dir = Path(logger["log_dir"] or folder / "logs").absolute()
    memory = TrackerMemory.of(folder, log_dir, resumed=done > 0, say=say)

    def feed(name: str) -> Feed:
        own = log_dir / memory.experiment / name
        own.mkdir(exist_ok=True)
        told = {"folder": str(own), "name": folder.absolute().name, "settings": dict(logger.get(name) or {}), "done": done}
        told |= {**facts, "known": memory.known.get(name, {})}
        log = own.with_suffix(".log")
        return Feed(name, told, log, say=say, remember=lambda known: memory.remember(name, known))

    say(f"tracked by {', '.join(names)}: {log_dir / memory.experiment}")
    opened = Trackers([feed(name) for name in names], is_hurried=is_hurried)
    if not logger["monitor_gpus"]:
        return opened
    return replace(opened, monitor=Monitor(opened.write, say, started=memory.started, **logger["gpu_monitoring"]))

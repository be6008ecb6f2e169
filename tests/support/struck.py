"""`python struck.py SIGNAL[+SIGNAL...] STEP RANK PROGRAM ARG...`: run PROGRAM's file, and let that strike that rank in STEP.

Signals come more than a second apart, so that none is taken for the one before. They strike when the record of the step has
been written and before anything that follows, a checkpoint above all.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator

from nemotron_dpo.training.record import Record


class Strike:
    """A sink at whose record of one step the signals arrive; it stands behind all others."""

    def __init__(self, name: str, step: int) -> None:
        self.signals, self.step = [getattr(signal, word) for word in name.split("+")], step

    def write(self, record: Record) -> None:
        if record.step == self.step and record.is_training:
            for number, one in enumerate(self.signals):
                time.sleep(1.1 * (number > 0))
                os.kill(os.getpid(), one)

    def sync(self) -> None:
        """It keeps nothing."""

    def close(self, *, failed: bool = False) -> None:
        """It holds nothing."""


def strike(name: str, step: int, rank: str) -> None:
    """Put a Strike behind the sinks of `rank`, whether or not it records anything."""
    from nemotron_dpo.training import sinks

    opened = sinks.opened

    @contextlib.contextmanager
    def struck(run: sinks.RecordedRun | None) -> Iterator[sinks.Sinks]:
        with opened(run) as recording:
            yield sinks.Sinks((*recording.members, Strike(name, step)))

    if os.environ.get("RANK", "0") == rank:
        sinks.opened = struck


if __name__ == "__main__":
    strike(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name="__main__")

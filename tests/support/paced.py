"""`python paced.py SECONDS PROGRAM ARG...`: run PROGRAM's file, and let every step of its training take so much longer.

A test that does something to a run has time for it then, and the run needs neither many steps nor large ones.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import time
from collections.abc import Iterator

from nemotron_dpo.training import sinks
from nemotron_dpo.training.record import Record


class Pause:
    """A sink that waits at every record of a step; it stands behind all others."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def write(self, record: Record) -> None:
        if record.is_training:
            time.sleep(self.seconds)

    def sync(self) -> None:
        """It keeps nothing."""

    def close(self, *, failed: bool = False) -> None:
        """It holds nothing."""


def pace(seconds: float) -> None:
    """Put a Pause behind the sinks."""
    opened = sinks.opened

    @contextlib.contextmanager
    def paced(run: sinks.RecordedRun | None) -> Iterator[sinks.Sinks]:
        with opened(run) as recording:
            yield sinks.Sinks((*recording.members, Pause(seconds)))

    sinks.opened = paced


if __name__ == "__main__":
    pace(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""`python struck.py SIGNAL STEP RANK PROGRAM ARG...`: run PROGRAM's file, and let that signal strike that rank in that step.

It strikes when the record of the step has been written and before anything that follows, a checkpoint above all.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from nemotron_dpo.training.record import MetricsFile, Record


class Struck(MetricsFile):
    """A metrics file at whose record of one step the signal arrives, on ranks that write none too."""

    name, step, rank = "", 0, ""

    def write(self, record: Record) -> None:
        super().write(record)
        if record["step"] == self.step and "train/loss" in record and os.environ.get("RANK", "0") == self.rank:
            os.kill(os.getpid(), getattr(signal, self.name))


if __name__ == "__main__":
    from nemotron_dpo.training import run

    Struck.name, Struck.step, Struck.rank = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    run.MetricsFile = Struck
    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name="__main__")

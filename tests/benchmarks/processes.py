"""Whole processes and what they took, as the kernel counts it.

A process begins with the peak memory of the one that started it, so a benchmark that measures memory imports nothing large.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Took:
    """Seconds by the wall clock, seconds of CPU time, and peak resident memory in bytes, all of it with its children."""

    wall: float
    cpu: float
    peak: float

    def __add__(self, other: Took) -> Took:
        """One after the other."""
        return Took(self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak))


def took(program: str, *arguments: object, env: Mapping[str, str] | None = None) -> Took:
    """What one of our executables takes to its end; it must succeed."""
    return measure([sys.executable, str(ROOT / "bin" / f"{program.replace('-', '_')}.py"), *map(str, arguments)], env)


def measure(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Took:
    """Run a command to its end. Leaves the program with the command's last words where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(argv[:3])} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

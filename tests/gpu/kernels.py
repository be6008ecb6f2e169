"""Every tests/libs/*/test_gpu.py: kernels, attention and log-probs with their gradients against float32, and repeated."""

from __future__ import annotations

import importlib.util
import os
import sys

import check
import pytest

from benchmarks.processes import ROOT

CANNOT_RUN = 77
# resume_export.py has the same at the same sizes
LEFT_OUT = "not runs_are_equal"


class Counted:
    """How many tests ended in which way."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        stats = terminalreporter.stats
        self.counts = {word: len(stats[word]) for word in ("passed", "failed", "skipped", "error") if word in stats}


def main() -> None:
    """Without a GPU they are found and skipped."""
    here, counted = check.begin(__doc__), Counted()
    os.chdir(ROOT)
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/libs/*/test_gpu.py"))
    check.require(bool(files), "there is no tests/libs/*/test_gpu.py")
    several = ["-n", "4"] if not here.cpu and importlib.util.find_spec("xdist") else []
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, *several, *files], plugins=[counted])
    counts = counted.counts
    check.require(status == 0, f"pytest ended with {int(status)}: {counts}")
    check.tell(here, **counts)
    if here.cpu and counts.get("skipped") and not counts.get("passed"):
        sys.exit(CANNOT_RUN)
    check.require(counts.get("passed", 0) > 0 and "skipped" not in counts, f"not all tests ran: {counts}")


if __name__ == "__main__":
    main()

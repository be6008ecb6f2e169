"""Every tests/libs/*/test_gpu.py: kernels, attention and log-probs with their gradients against float32, and repeated."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import check

from benchmarks.processes import ROOT

CANNOT_RUN = 77
# resume_export.py has the same at the same sizes
LEFT_OUT = "not runs_are_equal"


def main() -> None:
    """Without a GPU they are found and skipped."""
    here = check.begin(__doc__)
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/libs/*/test_gpu.py"))
    check.require(bool(files), "there is no tests/libs/*/test_gpu.py")
    several = ["-n", "4"] if not here.cpu and importlib.util.find_spec("xdist") else []
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, *several, *files]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-8000:])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout[-300:])}
    check.require(done.returncode == 0, f"pytest ended with {done.returncode}: {counts}")
    check.tell(here, **counts)
    if here.cpu and counts.get("skipped") and not counts.get("passed"):
        sys.exit(CANNOT_RUN)
    check.require(counts.get("passed", 0) > 0 and "skipped" not in counts, f"not all tests ran: {counts}")


if __name__ == "__main__":
    main()

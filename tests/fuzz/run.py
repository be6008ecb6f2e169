"""Look for inputs that end in anything but a value or a UserError.

python tests/fuzz/run.py [--seconds 300] [--start 0] [TARGET...]

Prints each kind of failure once: what was raised and where, the number of the input, and the input. The same number makes the
same input again, as long as tests/fuzz is as it was.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from fuzz.attempts import attempt  # noqa: E402 - the path comes first
from fuzz.inputs import ALL  # noqa: E402 - the path comes first

_MEMORY = 6 << 30
_IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(ALL))
    parser.add_argument("--seconds", type=float, default=300, help="of CPU for each target")
    parser.add_argument("--start", type=int, default=0)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for name in asked.targets or ALL:
        _fuzz(name, asked.start, asked.seconds)


def _fuzz(name: str, start: int, seconds: float) -> None:
    number, until, found = start, time.process_time() + seconds, {}
    while time.process_time() < until:
        with tempfile.TemporaryDirectory(prefix="fuzz", dir=_IN_MEMORY) as folder:
            failure = attempt(ALL[name], number, Path(folder))
        if failure is not None and failure.kind not in found:
            found[failure.kind] = number
            print(f"--- {name} {number}: {failure.kind}\n{failure.content[:1500]!r}", flush=True)
            if failure.error is not None:
                traceback.print_exception(failure.error, limit=-3, file=sys.stdout)
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"=== {name}: {number - start} inputs in {seconds:.0f} s of CPU, {len(found)} kinds of failure, {peak} MiB at most",
        flush=True,
    )


if __name__ == "__main__":
    main()

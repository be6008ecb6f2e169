#!/usr/bin/env python3
"""Many programs at once: whether all end, and whether each gives what one alone gives.

  python tests/benchmarks/bench_crowd.py [--at-once 64] [--rows 500] [--readers 64]

First so many preference-tokenize on one file, each with an output of its own, and in turn all with the same one. Then so many
ref-logprobs that read their scores from one store (190 MiB each), and that fill an empty one together (450 MiB). The memory
is that of all processes at the worst moment; pages that they share, such as those of libraries, count once for each.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_load import BIN, write_rows

from nemotron_dpo.steps.tiny_policy import write_policy

Argv = Sequence[object]


def main() -> None:
    """Print a line a crowd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--readers", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        rows, policy, alone = work / "rows.jsonl", work / "policy", work / "alone.arrow"
        write_rows(rows, options.rows, 1000)
        write_policy([rows], policy)
        tokenize = (BIN / "preference_tokenize.py", rows, "--tokenizer", policy, "-o")
        crowd("preference-tokenize alone", [(*tokenize, alone)], [alone], alone)
        outputs = [work / f"{number}.arrow" for number in range(options.at_once)]
        crowd("preference-tokenize, each its own output", [(*tokenize, output) for output in outputs], outputs, alone)
        one = work / "one.arrow"
        crowd("preference-tokenize, all the same output", [(*tokenize, one)] * options.at_once, [one], alone)
        score = (BIN / "ref_logprobs.py", alone, "--policy", policy, "--cache", work / "store", "-o")
        scored = work / "alone.scored.arrow"
        crowd("ref-logprobs alone, which fills the store", [(*score, scored)], [scored], scored)
        outputs = [work / f"{number}.scored.arrow" for number in range(options.readers)]
        crowd("ref-logprobs, all known", [(*score, output) for output in outputs], outputs, scored)
        for output in outputs:
            output.unlink()
        shutil.rmtree(work / "store")
        crowd("ref-logprobs, all to be scored", [(*score, output) for output in outputs], outputs, scored)


def crowd(name: str, commands: Sequence[Argv], outputs: Sequence[Path], alone: Path) -> None:
    """Start all at once and wait; say how they ended, whether the outputs are what one alone gives, and what it took."""
    started, most = time.perf_counter(), 0.0
    argvs = [[sys.executable, *map(str, command)] for command in commands]
    processes = [subprocess.Popen(argv, stderr=subprocess.DEVNULL) for argv in argvs]
    while any(process.poll() is None for process in processes):
        most = max(most, sum(_resident(process.pid) for process in processes))
        time.sleep(0.1)
    ended = sum(process.returncode == 0 for process in processes)
    equal = sum(output.read_bytes() == alone.read_bytes() for output in outputs)
    left = [path.name for path in alone.parent.glob(".*")]
    counts = f"{ended} of {len(processes)} ended well, {equal} of {len(outputs)} outputs equal, {len(left)} files left over"
    print(f"{name}: {counts}, {time.perf_counter() - started:.1f} s, {most:.0f} MiB", flush=True)


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    main()

"""What the checks of run.sh share: our programs as whole processes, what these leave, and the figures that a check tells.

A check is called with a folder of its own that does not exist yet, and with --cpu for sizes that a CPU computes in seconds. It
ends with status 0 if all holds. Of this project only the executables are used, so modules may move.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.processes import ROOT, measure, took

LN2 = math.log(2)
# a loss near ln 2 in float32, and in bfloat16, whose log-probs of a response are off by up to 0.1 and are multiplied by beta
NEAR = {"float32": 1e-5, "bfloat16": 1e-2}
# two machines' losses over a few steps of a policy of a million parameters, as tests/libs/policy/test_gpu.py has them
NEAR_CPU = {"float32": 1e-3, "bfloat16": 0.05}
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Check:
    """Where a check works, and whether on a CPU."""

    folder: Path
    cpu: bool


def begin(manual: str | None) -> Check:
    """From the command line. The folder is made."""
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu", action="store_true", help="small sizes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    return Check(options.folder.absolute(), options.cpu)


def run(program: str, *arguments: object, env: Mapping[str, str] | None = None) -> float:
    """Run one of our executables and return its seconds; the check ends where it fails."""
    seconds = took(program, *arguments, env=env).wall
    print(f"{seconds:6.1f} s  {program}{' on the CPU' if env is NO_GPU else ''}", flush=True)
    return seconds


def at_once(*jobs: Callable[[], object]) -> None:
    """Run the jobs side by side; the first that fails ends the check."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def policy(folder: Path, size: str, *pairs: str, experts: int = 0) -> Path:
    """A random policy, with files PROMPT-RESPONSE-COUNT.arrow of pairs beside it."""
    script = ROOT / "tests" / "benchmarks" / "random_policy.py"
    argv: list[object] = [sys.executable, script, size, "-o", folder, "--experts", experts, "--pairs", *pairs]
    print(f"{measure([str(part) for part in argv]).wall:6.1f} s  a random policy of {size}", flush=True)
    return folder


def records(run_dir: Path) -> list[dict]:
    """A run's training steps."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for line in lines if "train/loss" in (record := json.loads(line))]


def numbers(run_dir: Path) -> list[dict]:
    """The same without timings and memory: what must repeat to the last bit."""
    kept = [{k: v for k, v in record.items() if not k.startswith(("timing", "memory"))} for record in records(run_dir)]
    require(bool(kept), f"{run_dir} has no record of a step")
    return kept


def curve(run_dir: Path) -> list[float]:
    """The loss of every step."""
    return [record["train/loss"] for record in records(run_dir)]


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """Of every file that is so called below `folder`, by its place there."""
    files = sorted(folder.rglob(pattern))
    require(bool(files), f"no {pattern} in {folder}")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def near(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def require(truth: bool, otherwise: str) -> None:
    """End the check with one line where `truth` is not."""
    if not truth:
        _fail(otherwise)


def tell(check: Check, **figures: object) -> None:
    """Leave the figures for run.sh, which prints them, and remove what is large."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    (check.folder / "figures.json").write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    for path in check.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def step_figures(run_dir: Path, pairs: int) -> dict[str, object]:
    """Pairs/s and memory of the last step."""
    last = records(run_dir)[-1]
    peak = last.get("memory/train/max_allocated_bytes", 0)
    return {"pairs/s": pairs / last["timing/train/total_step_time"], "GB": peak / 1e9}


def _fail(why: str) -> NoReturn:
    sys.exit(f"check failed: {why}")

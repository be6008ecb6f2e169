#!/usr/bin/env python3
"""Whether many pairs cost more each than few: CPU seconds and memory of every stage at N/2 and at N pairs.

  python tests/benchmarks/bench_load.py [--pairs 1000000] [--letters 1000] [--shards 10000] [--scratch DIR]

The rows are made up, about 1 kB each (1 GB for a million), in one file and, in turn, in a folder of many. A million pairs take
days to score on two cores, so a store is made that knows their scores (`known_scores.py`). "growth" is the cost of the second
half over that of the first: 1 where a row costs the same whatever came before it, less where something is done once. Memory is
the most of a process's own, without the pages of files that it has mapped: the kernel takes those back where it needs them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemotron_dpo.steps.tiny_policy import write_policy

BIN = Path(__file__).resolve().parents[2] / "bin"
WORDS = [f"word{number}" for number in range(997)]
SETTINGS = (
    "dpo.max_num_steps=20",
    "policy.scheduler.warmup_steps=0",
    "dpo.val_at_start=false",
    "policy.train_global_batch_size=8",
    "checkpointing.enabled=false",
)


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and the most memory in MiB: of its own and of mapped files, which was seen at any time."""

    seconds: float
    mib: float
    mapped: float


def main() -> None:
    """Print a line a stage, and that of a start when it is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--letters", type=int, default=1000, help="of a row")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--scratch", type=Path, help="A folder with room for six times the rows  [default: of the system]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        work = Path(scratch)
        write_rows(work / "few.jsonl", 64, options.letters)
        write_policy([work / "few.jsonl"], work / "policy")
        if options.shards:
            of_shards(work, options.shards, options.letters)
        half = chain(work, options.pairs // 2, options.letters)
        whole = chain(work, options.pairs, options.letters)
        for stage, cost in whole.items():
            print(f"{stage}, {options.pairs} pairs: {_cost_text(cost)}; {_growth(half[stage], cost)}", flush=True)


def of_shards(work: Path, count: int, letters: int) -> None:
    """preference-tokenize on a folder of so many files of two rows."""
    shards = work / "shards"
    shards.mkdir()
    for number in range(count):
        write_rows(shards / f"rows-{number:05d}.jsonl", 2, letters, seed=number)
    print(f"preference-tokenize, {count} files of two rows: {_cost_text(tokenize(work, 'shards', shards))}", flush=True)
    shutil.rmtree(shards)


def write_rows(path: Path, count: int, letters: int, seed: int = 0) -> None:
    """Rows of words at random, each of about so many letters."""
    draw = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(count):
            prompt, chosen, rejected = (" ".join(draw.choices(WORDS, k=max(2, letters // 24))) for _ in range(3))
            file.write(orjson.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + b"\n")


def tokenize(work: Path, name: str, rows: Path) -> Cost:
    """preference-tokenize, into NAME.arrow."""
    return run("preference_tokenize", rows, "-o", work / f"{name}.arrow", "--tokenizer", work / "policy")


def chain(work: Path, count: int, letters: int) -> dict[str, Cost]:
    """The stages on so many rows: what each cost. What a stage no longer needs is removed."""
    name, policy, store = str(count), work / "policy", work / f"store-{count}"
    rows, pairs, scored, folder = (work / f"{name}{end}" for end in (".jsonl", ".arrow", ".scored.arrow", ".run"))
    write_rows(rows, count, letters, seed=count)
    costs = {"preference-tokenize": tokenize(work, name, rows)}
    rows.unlink()
    run(Path(__file__).with_name("known_scores.py"), pairs, policy, store)
    costs["ref-logprobs, all known"] = run("ref_logprobs", pairs, "-o", scored, "--policy", policy, "--cache", store)
    shutil.rmtree(store)
    pairs.unlink()
    costs["dpo-train, to its first step"] = run("dpo_train", *_training(scored, policy, folder), until=_has_records(folder))
    shutil.rmtree(folder)
    costs["dpo-train, 20 steps"] = run("dpo_train", *_training(scored, policy, folder))
    costs["dpo-report"] = run("dpo_report", folder, "-o", work / f"{name}.html", "--no-text")
    scored.unlink()
    return costs


def _training(scored: Path, policy: Path, folder: Path) -> tuple[object, ...]:
    return scored, "--policy", policy, "--run-dir", folder, *SETTINGS


def _has_records(folder: Path) -> Callable[[], bool]:
    metrics = folder / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.stat().st_size > 0


def run(program: str | Path, *arguments: object, until: Callable[[], bool] = lambda: False) -> Cost:
    """Run a program to its end, or to what `until` waits for, and say what it and its children cost."""
    started, pid = time.perf_counter(), os.fork()
    if pid == 0:
        _become(program if isinstance(program, Path) else BIN / f"{program}.py", arguments)
    most, mapped, stopped = 0.0, 0.0, False
    while True:
        own, files = _resident(pid)
        most, mapped = max(most, own), max(mapped, files)
        if not stopped and until():
            os.kill(pid, 9)
            stopped = True
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.02)
    if status and not stopped:
        sys.exit(f"bench_load: {program} failed")
    cost = Cost(usage.ru_utime + usage.ru_stime, most, mapped)
    wall = time.perf_counter() - started
    print(f"    {Path(program).stem} {Path(str(arguments[0])).name}: {wall:.1f} s, {_cost_text(cost)}", flush=True)
    return cost


def _become(program: Path, arguments: tuple[object, ...]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.environ.get("BENCH_LOAD_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.execv(sys.executable, [sys.executable, str(program), *map(str, arguments)])


def _resident(pid: int) -> tuple[float, float]:
    """MiB of a process's own and of files that it has mapped, at this time."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own, files = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    except (OSError, KeyError):  # it ended
        return 0.0, 0.0
    return own, files


def _growth(half: Cost, whole: Cost) -> str:
    return f"growth {(whole.seconds - half.seconds) / half.seconds:.2f}, of memory {whole.mib / half.mib:.2f}"


def _cost_text(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s of CPU, {cost.mib:.0f} MiB at most, {cost.mapped:.0f} of mapped files"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whether many pairs cost more each than few: CPU seconds and peak memory of every stage at N/2 and at N pairs.

  python tests/benchmarks/bench_load.py [--pairs 1000000] [--letters 1000] [--shards 10000]

The rows are made up, about 1 kB each (1 GB for a million), in one file and, in turn, in a folder of many. Training is 20 steps
of simpo, which needs no scores: a million pairs take days to score on two cores, and made-up scores are found out. So what it
costs is the reading, the checks and the packing of all pairs. "growth" is the cost of the second half over that of the first: 1
where a row costs the same whatever came before it, less where something is done once.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemotron_dpo.steps.tiny_policy import write_policy

BIN = Path(__file__).resolve().parents[2] / "bin"
WORDS = [f"word{number}" for number in range(997)]
SETTINGS = (
    "dpo.preference_loss=simpo",
    "dpo.max_num_steps=20",
    "policy.scheduler.warmup_steps=0",
    "dpo.val_at_start=false",
    "policy.train_global_batch_size=8",
    "checkpointing.enabled=false",
)


@dataclass(frozen=True)
class Cost:
    """CPU seconds and the peak of resident memory in MiB."""

    seconds: float
    mib: float


def main() -> None:
    """Print a line a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--letters", type=int, default=1000, help="of a row")
    parser.add_argument("--shards", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_rows(work / "few.jsonl", 64, options.letters)
        write_policy([work / "few.jsonl"], work / "policy")
        halves = [
            chain(work, name, _rows(work, name, count, options.letters))
            for name, count in (("half", options.pairs // 2), ("all", options.pairs))
        ]
        for stage, half in halves[0].items():
            _say(stage, options.pairs, half, halves[1][stage])
        shards = work / "shards"
        shards.mkdir()
        for number in range(options.shards):
            write_rows(shards / f"rows-{number:05d}.jsonl", 2, options.letters, seed=number)
        print(f"{options.shards} shards: {_cost_text(tokenize(work, 'shards', shards))}", flush=True)


def write_rows(path: Path, count: int, letters: int, seed: int = 0) -> None:
    """Rows of words at random, each of about so many letters."""
    draw = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(count):
            prompt, chosen, rejected = (" ".join(draw.choices(WORDS, k=max(2, letters // 24))) for _ in range(3))
            file.write(orjson.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + b"\n")


def _rows(work: Path, name: str, count: int, letters: int) -> Path:
    write_rows(work / f"{name}.jsonl", count, letters, seed=count)
    return work / f"{name}.jsonl"


def tokenize(work: Path, name: str, rows: Path) -> Cost:
    """preference-tokenize, into NAME.arrow."""
    return run("preference_tokenize", rows, "-o", work / f"{name}.arrow", "--tokenizer", work / "policy")


def chain(work: Path, name: str, rows: Path) -> dict[str, Cost]:
    """The stages on `rows`: what each cost."""
    costs = {"preference-tokenize": tokenize(work, name, rows)}
    rows.unlink()
    train = (work / f"{name}.arrow", "--policy", work / "policy", "--run-dir", work / f"run-{name}", *SETTINGS)
    costs["dpo-train, 20 steps"] = run("dpo_train", *train)
    costs["dpo-report"] = run("dpo_report", work / f"run-{name}", "-o", work / f"{name}.html", "--no-text")
    (work / f"{name}.arrow").unlink()
    return costs


def run(program: str, *arguments: object) -> Cost:
    """Run a program to its end; what it and its children cost."""
    pid = os.fork()
    if pid == 0:
        argv = [sys.executable, str(BIN / f"{program}.py"), *map(str, arguments)]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(os.open(os.environ.get("BENCH_LOAD_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.execv(argv[0], argv)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"bench_load: {program} failed")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _say(stage: str, pairs: int, half: Cost, whole: Cost) -> None:
    growth = (whole.seconds - half.seconds) / half.seconds
    print(f"{stage}, {pairs} pairs: {_cost_text(whole)}; growth {growth:.2f}, of memory {whole.mib / half.mib:.2f}", flush=True)


def _cost_text(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s of CPU, {cost.mib:.0f} MiB at most"


if __name__ == "__main__":
    main()

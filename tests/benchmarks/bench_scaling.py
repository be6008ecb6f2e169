#!/usr/bin/env python3
"""How time and memory grow with pairs, length, model size and ranks: whole processes, as JSON and as SVG plots.

  python tests/benchmarks/bench_scaling.py OUT_DIR [--only pairs length size ranks] [--rounds 3]

Writes OUT_DIR/scaling.json, which later calls add to, and a plot a section from all that is in it. Each figure is the median
of the rounds. `pairs` tokenizes and packs distinct rows made from the sample pairs; the others train a few steps of random
policies (random_policy.py) on random pairs, about 2048 tokens a step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import plots
import random_policy
from processes import ROOT, Took, measure, took

SAMPLES = ROOT / "configs" / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"
STEPS = 3
PACK = """
import random, sys
from nemotron_dpo.preferences.packing import pack
draw = random.Random(0)
for _ in range(int(sys.argv[1]) // 1000):
    pack([draw.randint(50, 1000) for _ in range(1000)], 4096)
"""


def main() -> None:
    """Measure what was asked for, and plot."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "scaling.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for section in options.only:
            for name, x, run in SECTIONS[section](Path(scratch)):
                rounds = [run() for _ in range(options.rounds)]
                row = {"x": x} | {key: statistics.median(getattr(r, key) for r in rounds) for key in ("wall", "cpu", "peak")}
                print(f"{name:28} {x:>8} {row['wall']:7.2f} s {row['cpu']:7.2f} CPU s {row['peak'] / 1e6:7.0f} MB", flush=True)
                rows = results.setdefault(section, {}).setdefault(name, [])
                rows[:] = sorted([*(old for old in rows if old["x"] != x), row], key=lambda r: r["x"])
                file.write_text(json.dumps(results, indent=1) + "\n")
    for section, series in results.items():
        (options.out / f"{section}.svg").write_text(plots.page(AXES[section], series), encoding="utf-8")


Case = tuple[str, int, Callable[[], Took]]


def _by_pairs(scratch: Path) -> Iterator[Case]:
    policy = _tokenizer(scratch)
    for count in (1_000, 10_000, 100_000):
        data, out = scratch / f"{count}.jsonl", scratch / "pairs.arrow"
        _write_rows(data, count)
        argv = ("preference-tokenize", data, "-o", out, "--tokenizer", policy)
        yield "preference-tokenize", count, partial(took, *argv)
        yield "packing", count, partial(measure, [sys.executable, "-c", PACK, str(count)])


def _by_length(scratch: Path) -> Iterator[Case]:
    policy = _policy(scratch, "10M")
    for length in (256, 512, 1024, 2048):
        response = length // 2
        yield "dpo-train, 10M", length, _training(scratch, policy, length - response, response, 4096 // (length + response))


def _by_size(scratch: Path) -> Iterator[Case]:
    for size in random_policy.SIZES:
        yield "dpo-train", _parameters(size), _training(scratch, _policy(scratch, size), 128, 192, 4)


def _by_ranks(scratch: Path) -> Iterator[Case]:
    for size in ("10M", "50M"):
        for ranks in (1, 2):
            yield f"dpo-train, {size}", ranks, _training(scratch, _policy(scratch, size), 128, 192, 8, ranks)


def _training(scratch: Path, policy: Path, prompt: int, response: int, batch: int, ranks: int = 1) -> Callable[[], Took]:
    """A few steps of `batch` pairs in rows of at most 2048 tokens; two ranks have one thread each, one has both."""
    data = _pairs(scratch, prompt, response, batch * STEPS)
    settings = [
        "policy.precision=bfloat16",
        f"policy.train_global_batch_size={batch}",
        "policy.sequence_packing.train_mb_tokens=2048",
        f"policy.max_total_sequence_length={prompt + response}",
        "policy.scheduler.warmup_steps=0",
        "dpo.preference_loss_weight=0",
        "dpo.sft_loss_weight=1",
        "checkpointing.enabled=false",
    ]
    argv = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    argv += [str(ROOT / "bin" / "dpo_train.py"), str(data), "--policy", str(policy), "--run-dir"]

    def run() -> Took:
        shutil.rmtree(scratch / "run", ignore_errors=True)
        return measure([*argv, str(scratch / "run"), *settings], {"OMP_NUM_THREADS": str(2 // ranks)})

    return run


def _write_rows(path: Path, count: int) -> None:
    """The sample pairs again and again, each with a number of its own, so that none is a duplicate."""
    rows = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            row = rows[n % len(rows)]
            file.write(json.dumps({**row, "prompt": f"{row['prompt']} (question {n})"}) + "\n")


def _tokenizer(scratch: Path) -> Path:
    argv = [sys.executable, "-m", "nemotron_dpo.steps.tiny_policy", str(SAMPLES), "-o", str(scratch / "tokenizer")]
    subprocess.run(argv, check=True)
    return scratch / "tokenizer"


def _policy(scratch: Path, size: str) -> Path:
    if not (scratch / size).exists():
        _make(size, scratch / size)
    return scratch / size


def _pairs(scratch: Path, prompt: int, response: int, count: int) -> Path:
    path = scratch / f"{prompt}-{response}-{count}.arrow"
    if not path.exists():
        _make("none", scratch, "--pairs", f"{prompt},{response},{count}")
    return path


def _make(size: str, folder: Path, *rest: str) -> None:
    subprocess.run([sys.executable, str(Path(random_policy.__file__)), size, "-o", str(folder), *rest], check=True)


def _parameters(size: str) -> int:

    from nemotron_dpo.checkpoint.families.config import from_config

    return from_config(random_policy.config(size), Path(size)).num_parameters()


SECTIONS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "pairs": _by_pairs,
    "length": _by_length,
    "size": _by_size,
    "ranks": _by_ranks,
}
AXES = {"pairs": "pairs", "length": "tokens of prompt and response", "size": "parameters", "ranks": "ranks"}


def _options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The steps of any objective against those of dpo on the same pairs, taking turns; ratios within one run.

  just bench --objective simpo aot_paired
  python tests/benchmarks/bench_objective.py POLICY --objective '{dpo: 0.8, bco_pair: 0.2, sft: 1.0}' [--hh HH] [--kind hh]

Each round trains every objective by dpo-train, dpo first, on pairs that were scored once. A figure is the median time of a
step without the first two, which meet their memory for the first time; a ratio is that of dpo in the same round. Without HH's
transcripts pairs are of made-up words. Rows have rewards, for the objectives that need some.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import workloads
from processes import took

_WARM_UP = 2


def main() -> None:
    """Print a line an objective."""
    options = _options()
    names = ["dpo", *(name for name in options.objective if name != "dpo")]
    with tempfile.TemporaryDirectory() as scratch:
        scored = _scored(options, Path(scratch))
        rounds = [
            {name: _seconds(name, scored, options, Path(scratch) / f"{number}-{at}") for at, name in enumerate(names)}
            for number in range(options.rounds)
        ]
    print(f"{options.kind}, length {options.length}, {options.precision}, {options.batch} pairs a step")
    for name in names:
        ratios, step = [one[name] / one["dpo"] for one in rounds], statistics.median(one[name] for one in rounds)
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"  {step:8.3f} s a step  {statistics.median(ratios):.3f} of dpo ({shown})  {name}")


def _scored(options: argparse.Namespace, folder: Path) -> Path:
    """Scored pairs, enough for every step."""
    from transformers import AutoTokenizer

    rows, pairs, scored = folder / "rows.jsonl", folder / "pairs.arrow", folder / "scored.arrow"
    tokenizer = AutoTokenizer.from_pretrained(options.policy)
    workloads.write(options.kind, options.hh, options.batch * (_WARM_UP + options.steps), options.length, tokenizer, rows)
    lines = [json.loads(line) | {"chosen_score": 2.0, "rejected_score": 1.0} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    took("preference-tokenize", rows, "-o", pairs, "--tokenizer", options.policy, "--max-length", options.length)
    took("ref-logprobs", pairs, "-o", scored, "--policy", options.policy, "--precision", options.precision)
    return scored


def _seconds(name: str, scored: Path, options: argparse.Namespace, run: Path) -> float:
    """The median time of a step of the objective called `name`, or of a mixture."""
    settings = [
        f"dpo.preference_loss={name}",
        "dpo.max_num_epochs=1",
        "checkpointing.enabled=false",
        f"policy.precision={options.precision}",
        f"policy.train_global_batch_size={options.batch}",
        f"policy.max_total_sequence_length={options.length}",
        f"policy.sequence_packing.train_mb_tokens={4 * options.length}",
        "policy.optimizer.lr=1e-7",
        "policy.scheduler.warmup_steps=0",
    ]
    took("dpo-train", scored, "--policy", options.policy, "--run-dir", run, *settings)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([one["timing/train/total_step_time"] for one in records if "train/loss" in one][_WARM_UP:])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="Hugging Face folder")
    parser.add_argument("--objective", nargs="+", required=True, help="what dpo.preference_loss may say")
    parser.add_argument("--hh", type=Path, help="HH pairs, gzipped JSONL")
    parser.add_argument("--kind", choices=["hh", "long"], default="hh")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()

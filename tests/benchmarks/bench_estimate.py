#!/usr/bin/env python3
"""The memory that `nemotron-steps run ... --dry-run` estimates, against what dpo-train takes.

  python tests/benchmarks/bench_estimate.py [--size 1M 50M] [--precision bfloat16] [--tokens 1024 4096] [--policy HF_DIR]

Each figure is the peak resident memory of one process that takes three steps on random pairs, a row of so many tokens a step.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import random_policy
from processes import took

from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.steps.estimate.memory import memory
from nemotron_dpo.steps.estimate.sizes import Sizes

PAIR = (128, 192)  # tokens of a prompt and of each response; two such pairs are 1024
STEPS = 3


def main() -> None:
    """Print a line a case, and the largest difference."""
    options = _options()
    print(
        f"{'policy':>8} {'precision':>9} {'tokens':>6} {'recompute':>9} {'estimate':>9} {'measured':>9} {'ratio':>6}",
        flush=True,
    )
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in [*options.size, *(["given"] if options.policy else [])]:
            folder = options.policy if size == "given" else _made(size, Path(scratch) / size)
            for case in itertools.product(options.precision, options.tokens, options.recompute):
                ratios.append(_compare(folder, size, *case, Path(scratch)))
    print(f"largest difference: {100 * max(abs(ratio - 1) for ratio in ratios):.0f} %")


def _compare(folder: Path, size: str, precision: str, tokens: int, recompute: str, scratch: Path) -> float:
    """Estimate over measurement."""
    again = {"none": None, "full": Recompute(), "mlp": Recompute("selective", modules=("mlp",))}[recompute]
    expected = memory(config.read(folder), Sizes(precision, tokens, recompute=again)).total
    measured = _measure(folder, precision, tokens, recompute, scratch)
    row = f"{size:>8} {precision:>9} {tokens:>6} {recompute:>9} {expected / 1e6:>6.0f} MB {measured / 1e6:>6.0f} MB"
    print(f"{row} {expected / measured:>6.2f}", flush=True)
    return expected / measured


def _measure(folder: Path, precision: str, tokens: int, recompute: str, scratch: Path) -> float:
    batch = tokens // (PAIR[0] + 2 * PAIR[1])
    data = _pairs(scratch, batch * STEPS)
    settings = [
        f"policy.precision={precision}",
        f"policy.train_global_batch_size={batch}",
        f"policy.sequence_packing.train_mb_tokens={tokens}",
        "policy.max_total_sequence_length=512",
        "policy.scheduler.warmup_steps=0",
        "dpo.preference_loss_weight=0",
        "dpo.sft_loss_weight=1",
        "checkpointing.enabled=false",
    ]
    if recompute != "none":
        settings.append("policy.megatron_cfg.activation_checkpointing=true")
    if recompute == "mlp":
        settings += ["policy.megatron_cfg.recompute_granularity=selective", "policy.megatron_cfg.recompute_modules=[mlp]"]
    with tempfile.TemporaryDirectory(dir=scratch) as run:
        return took("dpo-train", data, "--policy", folder, "--run-dir", run, *settings).peak


def _made(size: str, folder: Path) -> Path:
    _make(size, folder)
    return folder


def _pairs(folder: Path, count: int) -> Path:
    path = folder / f"{PAIR[0]}-{PAIR[1]}-{count}.arrow"
    if not path.exists():
        _make("none", folder, "--pairs", f"{PAIR[0]},{PAIR[1]},{count}")
    return path


def _make(*arguments: object) -> None:
    size, folder, *rest = map(str, arguments)
    subprocess.run([sys.executable, str(Path(random_policy.__file__)), size, "-o", folder, *rest], check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="*", choices=[*random_policy.SIZES], default=[*random_policy.SIZES])
    parser.add_argument("--policy", type=Path, help="a Hugging Face folder besides")
    parser.add_argument("--precision", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096], help="of a row, multiples of 1024")
    parser.add_argument("--recompute", nargs="+", choices=["none", "full", "mlp"], default=["none"])
    return parser.parse_args()


if __name__ == "__main__":
    main()

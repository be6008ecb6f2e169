#!/usr/bin/env python3
"""Training steps of each architecture, here and by another checkout in turns: bench_families.py OTHER [--families ...]

OTHER is the root of a checkout of an earlier commit that is set up (`just setup` there). Both train the same random models
of transformers (10 to 25 million parameters) on the same pairs, and both start from the same scores. A row says what ours
took of the other's time: the fastest step of all rounds, and CPU seconds and peak memory of whole runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import ROOT, Took, measure

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
MIXTURE = {"intermediate_size": 512, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "nemotron": {},
    "phi3": {"pad_token_id": 0},
    "gemma": {},
    "mixtral": {**MIXTURE, "num_local_experts": 4},
    "qwen3_moe": {**MIXTURE, "num_experts": 4, "moe_intermediate_size": 512, "norm_topk_prob": True},
}
STEPS, PAIRS = 8, 4


@dataclass(frozen=True)
class Run:
    """The fastest step's seconds, and what the whole process took."""

    step: float
    whole: Took


def main() -> None:
    """Print a row a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'family':12}{'step':>8}{'cpu':>8}{'peak':>8}   (ours / other's, {options.precision})")
    with tempfile.TemporaryDirectory() as scratch:
        for family in options.families:
            _family(family, Path(scratch) / family, options)


def _family(family: str, folder: Path, options: argparse.Namespace) -> None:
    """Make the model and its scores, then train by each checkout in turns."""
    _write_model(folder / "policy", family)
    pairs = f"64,128,{STEPS * PAIRS}"  # written by the other: an earlier commit may not read our streams, we read its
    measure(_program(options.other, "tests/benchmarks/random_policy", "none", "-o", folder, "--pairs", pairs))
    scored = folder / "scored.arrow"
    tokenized = folder / f"{pairs.replace(',', '-')}.arrow"
    measure(_program(options.other, "bin/ref_logprobs", tokenized, "--policy", folder / "policy", "-o", scored))
    runs: dict[Path, list[Run]] = {ROOT: [], options.other: []}
    for number in range(options.rounds):
        for root in (ROOT, options.other) if number % 2 else (options.other, ROOT):
            runs[root].append(_train(root, folder, scored, folder / f"run-{len(runs[root])}-{root == ROOT}", options.precision))
    ours, theirs = runs[ROOT], runs[options.other]
    step = min(run.step for run in ours) / min(run.step for run in theirs)
    cpu = statistics.median(a.whole.cpu / b.whole.cpu for a, b in zip(ours, theirs, strict=True))
    peak = max(run.whole.peak for run in ours) / max(run.whole.peak for run in theirs)
    print(f"{family:12}{step:8.3f}{cpu:8.3f}{peak:8.3f}", flush=True)


def _write_model(folder: Path, family: str) -> None:
    """In a process of its own: this one stays small, since a child's peak memory begins with its parent's."""
    settings = json.dumps({**SIZES, **FAMILIES[family]})
    code = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModelForCausalLM; torch.manual_seed(0);"
        "config = AutoConfig.for_model(sys.argv[1], **json.loads(sys.argv[2]));"
        "AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(sys.argv[3])"
    )
    subprocess.run([sys.executable, "-c", code, family, settings, str(folder)], check=True, stderr=subprocess.DEVNULL)


def _train(root: Path, folder: Path, scored: Path, run: Path, precision: str) -> Run:
    settings = (f"dpo.max_num_steps={STEPS}", f"policy.train_global_batch_size={PAIRS}", f"policy.precision={precision}")
    more = ("policy.scheduler.warmup_steps=1", "dpo.val_at_start=false", "dpo.val_period=0")
    policy = ("--policy", folder / "policy", "--run-dir", run)
    whole = measure(_program(root, "bin/dpo_train", scored, *policy, *settings, *more), {"OMP_NUM_THREADS": "1"})
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return Run(min(record["timing/train/total_step_time"] for record in records if "train/loss" in record), whole)


def _program(root: Path, module: str, *arguments: object) -> list[str]:
    return [str(root / ".venv" / "bin" / "python"), str(root / f"{module}.py"), *map(str, arguments)]


if __name__ == "__main__":
    main()

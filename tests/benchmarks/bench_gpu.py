#!/usr/bin/env python3
"""DPO steps of a 1B policy on one GPU, ours and TRL's in one run: pairs/s of training, scoring and both, memory, FLOP/s.

  python tests/benchmarks/bench_gpu.py [--peer TRL_PYTHON] [--hh HH --tokenizer FOLDER] [--kind long] [--batch 128]

The policy has the shape of Llama-3.2-1B and random weights, bfloat16 with float32 master weights in both programs. The pairs
are gone through twice; a rate is that of the second time, all steps, whatever their lengths. Both score the reference before:
TRL in its own way, ours by ref-logprobs, whose rate is taken from many times the pairs against once. TRL runs in the setting in
which it is fastest here, for which trl_peer.py looks --seconds long. FLOPs are what bench_dpo counts, beside the rate of a
large product that the same card sustains. Memory is what tensors took at most, as torch's allocator tells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import workloads
from bench_dpo import model_flops
from processes import measure, took

SCORED = 4_000_000  # tokens, where the scoring pass is timed
EPOCHS = 2

Figures = dict[str, float | str]


def main() -> None:
    """Print a table a kind of pairs."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        policy = _policy(Path(scratch) / "policy", options)
        figures: dict[str, Figures] = {}
        for kind in options.kind:
            folder = Path(scratch) / kind
            folder.mkdir()
            figures[kind] = _compare(kind, policy, folder, options)
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _policy(folder: Path, options: argparse.Namespace) -> Path:
    """Random weights beside the tokenizer given, or one that is trained on the sample pairs."""
    measure([sys.executable, str(Path(__file__).with_name("random_policy.py")), options.size, "-o", str(folder)])
    tokenizer = options.tokenizer or _tokenizer(folder.with_name("tokenizer"))
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _tokenizer(folder: Path) -> Path:
    sample = Path(__file__).parents[2] / "configs" / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"
    measure([sys.executable, "-m", "nemotron_dpo.steps.tiny_policy", str(sample), "-o", str(folder)])
    return folder


def _compare(kind: str, policy: Path, folder: Path, options: argparse.Namespace) -> Figures:
    from transformers import AutoTokenizer

    data, tokenizer = folder / "pairs.jsonl", AutoTokenizer.from_pretrained(policy)
    counts = workloads.write(kind, options.hh, options.batch * options.steps, options.length, tokenizer, data)
    print(f"{kind}: {counts}{'' if options.hh else ', made up'}", flush=True)
    ours = _ours(data, policy, folder, counts, options)
    _say("ours", ours)
    if not options.peer:
        return {f"ours {name}": value for name, value in ours.items()}
    theirs = _trl(data, policy, folder, options)
    _say("TRL", theirs)
    ratio = float(ours["pairs/s"]) / float(theirs["pairs/s"])
    print(f"  ours / TRL {ratio:.2f}", flush=True)
    named = {f"{who} {name}": value for who, each in (("ours", ours), ("TRL", theirs)) for name, value in each.items()}
    return {"ratio": ratio, **named}


def _ours(data: Path, policy: Path, folder: Path, counts: Mapping[str, int], options: argparse.Namespace) -> Figures:
    pairs, scored, run = folder / "pairs.arrow", folder / "scored.arrow", folder / "run"
    took("preference-tokenize", data, "-o", pairs, "--tokenizer", policy, "--max-length", options.length)
    once = took("ref-logprobs", pairs, "-o", scored, "--policy", policy).wall
    settings = [
        f"policy.train_global_batch_size={options.batch}",
        f"policy.max_total_sequence_length={options.length}",
        f"policy.sequence_packing.train_mb_tokens={2 * options.micro_batch * options.length}",
        "policy.optimizer.lr=1e-6",
        "policy.scheduler.warmup_steps=0",
        f"dpo.max_num_epochs={EPOCHS}",
        "checkpointing.enabled=false",
    ]
    took("dpo-train", scored, "--policy", policy, "--run-dir", run, *settings)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "train/loss" in record]
    second = [record["timing/train/total_step_time"] for record in steps[options.steps :]]
    flops = model_flops(policy, counts) / sum(second) / 1e12
    scoring = _scoring_rate(data, policy, folder, once, counts["unique_tokens"], options)
    losses = [record["train/loss"] for record in steps]
    return _figures(second, scoring, steps[-1].get("memory/train/max_allocated_bytes", 0), losses, options) | {"TFLOP/s": flops}


def _scoring_rate(data: Path, policy: Path, folder: Path, once: float, num_tokens: int, options: argparse.Namespace) -> float:
    """Pairs/s of ref-logprobs after its start: the pairs, of `num_tokens`, so often that it takes a while, against `once`.

    Where that takes hardly longer, the start is counted too.
    """
    rows, times = data.read_text(), max(2, options.scored // num_tokens)
    source, pairs = folder / "many.jsonl", folder / "many.arrow"
    source.write_text(rows * times)
    took("preference-tokenize", source, "-o", pairs, "--tokenizer", policy, "--max-length", options.length)
    often = took("ref-logprobs", pairs, "-o", folder / "many-scored.arrow", "--policy", policy).wall
    more = often - once
    return options.batch * options.steps * ((times - 1) / more if more > once / 4 else times / often)


def _trl(data: Path, policy: Path, folder: Path, options: argparse.Namespace) -> Figures:
    script = Path(__file__).with_name("trl_peer.py")
    argv = [options.peer, script, data, policy, folder / "trl", "--batch", options.batch, "--micro-batch", options.micro_batch]
    argv += ["--length", options.length, "--precision", "bfloat16", "--epochs", EPOCHS, "--best", options.seconds]
    argv += ["--trial-pairs", options.trial_pairs]
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-2000:]}")
    for line in done.stderr.splitlines():
        if line.startswith("TRL "):
            print(f"  {line}", flush=True)
    told = json.loads(done.stdout.splitlines()[-1])
    second = told["step_seconds"][options.steps :]
    scoring = options.batch * options.steps / told["reference_seconds"]
    return _figures(second, scoring, told["max_allocated_bytes"], told["losses"], options) | {"setting": told["setting"]}


def _figures(seconds: list[float], scoring: float, peak: float, losses: list[float], options: argparse.Namespace) -> Figures:
    """Of an epoch's steps and a scoring rate: pairs/s of training, of scoring, and of one after the other."""
    training = len(seconds) * options.batch / sum(seconds)
    both = 1 / (1 / training + 1 / scoring)
    rates: Figures = {"pairs/s": both, "training pairs/s": training, "scoring pairs/s": scoring, "GB": peak / 1e9}
    return {**rates, "steps": ", ".join(f"{value:.2f}" for value in seconds), "loss": f"{losses[0]:.4f} -> {losses[-1]:.4f}"}


def _say(who: str, figures: Figures) -> None:
    words = [f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()]
    print(f"  {who:5} {'; '.join(words)}", flush=True)


def gemm_rate(size: int = 8192, times: int = 200) -> float:
    """FLOP/s of `times` products of matrices in bfloat16, on the GPU where there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    wait()
    started = time.perf_counter()
    for _ in range(times):
        torch.mm(a, b)
    wait()
    return times * 2 * size**3 / (time.perf_counter() - started)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hh", type=Path, help="HH pairs, gzipped JSONL; without, pairs of made-up words with HH's lengths")
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder with Llama 3's, which has the vocabulary; without, a small one"
    )
    parser.add_argument("--size", default="1B", help="of the policy")
    parser.add_argument("--peer", help="a Python with torch and trl; without it only ours is measured")
    parser.add_argument("--kind", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="pairs in a forward pass; ours: their tokens; TRL's to begin with"
    )
    parser.add_argument("--steps", type=int, default=2, help="an epoch, of which there are two")
    parser.add_argument("--scored", type=int, default=SCORED, help="tokens that the scoring pass is timed over")
    parser.add_argument("--seconds", type=float, default=60, help="to look for TRL's fastest setting, for each kind")
    parser.add_argument("--trial-pairs", type=int, default=64, help="pairs that one of TRL's settings is timed over, twice")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args()


if __name__ == "__main__":
    main()

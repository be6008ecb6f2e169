#!/usr/bin/env python3
"""DPO on one GPU, ours and TRL's in one run: steady pairs/s of a recipe's steps, scoring included, memory and MFU.

  python tests/benchmarks/bench_gpu.py HH --tokenizer FOLDER [--peer TRL_PYTHON] [--kind long] [--batch 128] [--steps 4]

The policy has the shape of Llama-3.2-1B and random weights, bfloat16 with float32 master weights in both programs. A step is
the median of all but the first, which compiles kernels. TRL scores the reference within its steps; ours does so before, at a
rate taken from many times the pairs against once. FLOPs are what bench_dpo counts, beside the rate of a large product that the
same card sustains. Memory is what tensors took at most, as torch's allocator tells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import workloads
from bench_dpo import model_flops
from processes import took

SCORED = 4_000_000  # tokens, where the scoring pass is timed


def main() -> None:
    """Print a table a kind of pairs."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        policy = Path(scratch) / "policy"
        subprocess.run([sys.executable, Path(__file__).with_name("random_policy.py"), "1B", "-o", policy], check=True)
        for file in options.tokenizer.glob("tokenizer*"):
            shutil.copy(file, policy)
        print(f"matrix products: {_gemm_rate() / 1e12:.0f} TFLOP/s", flush=True)
        for kind in options.kind:
            folder = Path(scratch) / kind
            folder.mkdir()
            _compare(kind, policy, folder, options)


def _compare(kind: str, policy: Path, folder: Path, options: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    data, num_pairs = folder / "pairs.jsonl", options.batch * options.steps
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    counts = workloads.write(kind, options.hh, num_pairs, options.length, tokenizer, data)
    print(f"{kind}: {counts}", flush=True)
    if options.peer:
        _report("TRL", options.batch / _trl(data, policy, folder, options), "with its online reference")
    training, flops = _ours(data, policy, folder, options), model_flops(policy, counts)
    _report("ours", options.batch / training, f"training, {flops / options.steps / training / 1e12:.0f} TFLOP/s of the model")
    scoring = _scoring_rate(data, policy, folder, counts["unique_tokens"], options)
    _report("ours", scoring, "scoring")
    _report("ours", 1 / (training / options.batch + 1 / scoring), "both")


def _ours(data: Path, policy: Path, folder: Path, options: argparse.Namespace) -> float:
    """Seconds of a training step."""
    pairs, scored, run = folder / "pairs.arrow", folder / "scored.arrow", folder / "run"
    took("preference-tokenize", data, "-o", pairs, "--tokenizer", policy, "--max-length", options.length)
    whole = took("ref-logprobs", pairs, "-o", scored, "--policy", policy)
    settings = [
        f"policy.train_global_batch_size={options.batch}",
        f"policy.max_total_sequence_length={options.length}",
        f"policy.sequence_packing.train_mb_tokens={2 * options.micro_batch * options.length}",
        "policy.optimizer.lr=1e-6",
        "policy.scheduler.warmup_steps=0",
        "dpo.max_num_epochs=1",
        "checkpointing.enabled=false",
    ]
    whole += took("dpo-train", scored, "--policy", policy, "--run-dir", run, *settings)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "train/loss" in record]
    _memory("ours", steps[-1]["memory/train/max_allocated_bytes"], [record["train/loss"] for record in steps])
    print(f"  ours: {whole.wall:.1f} s in all, two processes with their starts", flush=True)
    return _steady([record["timing/train/total_step_time"] for record in steps])


def _scoring_rate(data: Path, policy: Path, folder: Path, num_tokens: int, options: argparse.Namespace) -> float:
    """Pairs/s of ref-logprobs after its start: the pairs, of `num_tokens`, so often that it takes a while, against once."""
    rows, times = data.read_text(), max(2, SCORED // num_tokens)
    seconds = []
    for count in (1, times):
        source, pairs = folder / "some.jsonl", folder / "some.arrow"
        source.write_text(rows * count)
        took("preference-tokenize", source, "-o", pairs, "--tokenizer", policy, "--max-length", options.length)
        seconds.append(took("ref-logprobs", pairs, "-o", folder / "some-scored.arrow", "--policy", policy).wall)
    return (times - 1) * options.batch * options.steps / (seconds[1] - seconds[0])


def _trl(data: Path, policy: Path, folder: Path, options: argparse.Namespace) -> float:
    """Seconds of a step of TRL's."""
    script = Path(__file__).with_name("trl_peer.py")
    argv = [options.peer, script, data, policy, folder / "trl", "--batch", options.batch, "--micro-batch", options.micro_batch]
    argv += ["--length", options.length, "--precision", "bfloat16"]
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    _memory("TRL", told["max_allocated_bytes"], told["losses"])
    return _steady(told["step_seconds"])


def _steady(seconds: list[float]) -> float:
    print(f"        steps: {', '.join(f'{value:.2f}' for value in seconds)} s", flush=True)
    return statistics.median(seconds[1:])


def _memory(who: str, peak: float, losses: list[float]) -> None:
    print(f"  {who:5} {peak / 1e9:.1f} GB, loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)


def _report(who: str, rate: float, what: str) -> None:
    print(f"  {who:5} {rate:7.1f} pairs/s  {what}", flush=True)


def _gemm_rate() -> float:
    """FLOP/s of large products in bfloat16 over two hundred of them."""
    import torch

    size, times = 8192, 200
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        torch.mm(a, b)
    end.record()
    end.synchronize()
    return times * 2 * size**3 / start.elapsed_time(end) * 1e3


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hh", type=Path, help="HH pairs, gzipped JSONL")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with Llama 3's, which has the vocabulary")
    parser.add_argument("--peer", help="a Python with torch and trl; without it only ours is measured")
    parser.add_argument("--kind", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs in a forward pass; ours: their tokens")
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()

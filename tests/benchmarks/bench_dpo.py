#!/usr/bin/env python3
"""DPO from the same JSONL and Hugging Face folder to updated weights, ours and TRL's, taking turns; ratios within one run.

  NEMOTRON_DPO_HH=harmless-base.test.jsonl.gz just bench
  python tests/benchmarks/bench_dpo.py HH POLICY --peer TRL_PYTHON [--kind hh] [--precision bfloat16] [--length 512]

Ours is preference-tokenize, ref-logprobs, dpo-train and the export to a Hugging Face folder, each timed as a process; TRL is
one process of trl_peer.py with its online reference. Figures are medians of the rounds. The share of the matrix-product limit
is the model FLOPs of the training steps (shared prompts once) over their time, against the rate of a large product of the same
precision that this machine sustains for two seconds, the median of all times it is measured, before and after each run of
ours: of all steps, or with --epochs (ours alone) of the last epoch's, which are not slowed by memory met for the first time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import workloads
from processes import Took, measure, took

BETAS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Case:
    """One workload on disk: `counts` are workloads.write's."""

    data: Path
    policy: Path
    counts: dict[str, int]
    precision: str
    length: int
    batch: int
    micro_batch: int
    epochs: int


def main() -> None:
    """Print a table a case."""
    options = _options()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.policy)
    for kind in options.kind:
        for length in options.length:
            for precision in options.precision:
                with tempfile.TemporaryDirectory() as scratch:
                    data = Path(scratch) / "pairs.jsonl"
                    counts = workloads.write(kind, options.hh, options.pairs, length, tokenizer, data)
                    micro_batch = max(1, options.micro_batch * 512 // length)
                    case = Case(data, options.policy, counts, precision, length, options.batch, micro_batch, options.epochs)
                    print(f"\n{kind}, length {length}, {precision}: {counts}", flush=True)
                    _compare(case, options, Path(scratch))


def _compare(case: Case, options: argparse.Namespace, scratch: Path) -> None:
    ours: list[tuple[Took, float]] = []
    rates: list[float] = []
    theirs: list[Took] = []
    sweeps: list[tuple[Took, Took]] = []
    for round_ in range(options.rounds):
        if options.peer:
            theirs.append(_trl(case, options, scratch / f"trl{round_}"))
        rates.append(_gemm_rate(case.precision))
        ours.append(_ours(case, scratch / f"ours{round_}", BETAS[1:2]))
        rates.append(_gemm_rate(case.precision))
        if options.sweep and options.peer:
            swept, _ = _ours(case, scratch / f"sweep{round_}", BETAS)
            sweeps.append((swept, theirs[-1] + theirs[-1] + theirs[-1]))
    _report(case, "ours", [cost for cost, _ in ours])
    if theirs:
        _report(case, "TRL", theirs)
        _ratio("pairs/s", [b.wall / a.wall for (a, _), b in zip(ours, theirs, strict=True)])
        _ratio("CPU seconds", [b.cpu / a.cpu for (a, _), b in zip(ours, theirs, strict=True)])
        _ratio("peak memory", [a.peak / b.peak for (a, _), b in zip(ours, theirs, strict=True)])
    if sweeps:
        _ratio("pairs/s over a sweep of 3 betas", [b.wall / a.wall for a, b in sweeps])
    limit, flops = statistics.median(rates), model_flops(case.policy, case.counts)
    _ratio("matrix products, GFLOP/s", [rate / 1e9 for rate in rates])
    _ratio("training stage, share of the matrix-product limit", [flops / seconds / limit for _, seconds in ours])
    _ratio("training stage, seconds", [seconds for _, seconds in ours])


def _report(case: Case, who: str, costs: Sequence[Took]) -> None:
    wall = statistics.median(cost.wall for cost in costs)
    cpu = statistics.median(cost.cpu for cost in costs)
    peak = statistics.median(cost.peak for cost in costs)
    pairs, tokens = case.counts["pairs"] / wall, case.counts["sequence_tokens"] / wall
    print(
        f"  {who:5} {wall:7.1f} s {pairs:7.3f} pairs/s {tokens:8.0f} tokens/s {cpu:7.1f} CPU s {peak / 1e9:6.2f} GB", flush=True
    )


def _ratio(what: str, values: Sequence[float]) -> None:
    print(f"  {what}: {statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})", flush=True)


def _ours(case: Case, folder: Path, betas: Sequence[float]) -> tuple[Took, float]:
    """All stages, the training stage once a beta; and the seconds of the steps of its last run's last epoch."""
    folder.mkdir()
    mb_tokens = 2 * case.micro_batch * case.length
    pairs, scored = folder / "pairs.arrow", folder / "scored.arrow"
    cost = took("preference-tokenize", case.data, "-o", pairs, "--tokenizer", case.policy, "--max-length", case.length)
    precision = ("--precision", case.precision)
    cost += took("ref-logprobs", pairs, "-o", scored, "--policy", case.policy, *precision)
    run = folder
    for beta in betas:
        run = folder / f"run{beta}"
        settings = [
            f"policy.precision={case.precision}",
            f"policy.train_global_batch_size={case.batch}",
            f"policy.max_total_sequence_length={case.length}",
            f"policy.sequence_packing.train_mb_tokens={mb_tokens}",
            "policy.optimizer.lr=1e-6",
            "policy.scheduler.warmup_steps=0",
            f"dpo.max_num_epochs={case.epochs}",
            f"dpo.reference_policy_kl_penalty={beta}",
        ]
        cost += took("dpo-train", scored, "--policy", case.policy, "--run-dir", run, *settings)
        cost += took("ckpt-export", run, "-o", folder / f"hf{beta}", "--to", "hf")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["timing/train/total_step_time"] for record in records if "train/loss" in record]
    return cost, sum(seconds[-len(seconds) // case.epochs :])


def _trl(case: Case, options: argparse.Namespace, output: Path) -> Took:
    script = Path(__file__).with_name("trl_peer.py")
    argv = [options.peer, str(script), str(case.data), str(case.policy), str(output), "--precision", case.precision]
    argv += ["--batch", str(case.batch), "--micro-batch", str(case.micro_batch), "--length", str(case.length)]
    return measure([*argv, *(["--gradient-checkpointing"] if options.gradient_checkpointing else [])])


def _gemm_rate(precision: str) -> float:
    """FLOP/s of large matrix products in this precision over two seconds, by the kernels that training takes."""
    import torch

    from nemotron_dpo.kernels.torch_ops.float32_matmul import prefer_onednn

    prefer_onednn()
    a, b = (torch.randn(2048, 2048).to(getattr(torch, precision)) for _ in range(2))
    out = torch.mm(a, b)
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < 2:
        torch.mm(a, b, out=out)
        done += 2 * 2048**3
    return done / seconds


def model_flops(policy: Path, counts: Mapping[str, int]) -> float:
    """Matrix-product FLOPs that training needs: layers on every packed token, the output layer on responses.

    Forward and backward, 6 a weight and token; attention scores are counted as causal, half the square. `counts`
    are workloads.write's.
    """
    config = json.loads((policy / "config.json").read_text())
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    groups = config["num_key_value_heads"]
    layer = hidden * head * (2 * heads + 2 * groups) + 3 * hidden * config["intermediate_size"]
    tokens, pairs = counts["unique_tokens"], counts["pairs"]
    attention = 6 * 2 * heads * head * layers * tokens * (counts["sequence_tokens"] / pairs / 2) / 2
    return 6.0 * (layers * layer * tokens + hidden * config["vocab_size"] * counts["response_tokens"]) + attention


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hh", type=Path, help="HH pairs, gzipped JSONL")
    parser.add_argument("policy", type=Path, help="Hugging Face folder")
    parser.add_argument("--peer", help="a Python with torch and trl; without it only ours is measured")
    parser.add_argument("--kind", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--precision", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"])
    parser.add_argument("--length", nargs="+", type=int, default=[512])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--micro-batch", type=int, default=4, help="pairs of 512 tokens in a forward pass, fewer if longer; ours: their tokens"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of ours, without --peer: the share is that of the last one")
    parser.add_argument("--sweep", action="store_true", help="also three betas, against three runs of TRL")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's default; slower, less memory")
    options = parser.parse_args()
    if options.peer and options.epochs != 1:
        parser.error("--epochs is for ours alone: leave --peer out")
    return options


if __name__ == "__main__":
    main()

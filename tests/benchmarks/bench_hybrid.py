#!/usr/bin/env python3
"""DPO steps of a dense hybrid of 130M parameters on HH, ours and transformers' by torch, in turns, on the same pairs.

  python tests/benchmarks/bench_hybrid.py harmless-base.test.jsonl.gz [--pairs 12] [--batch 4] [--rounds 2]

Ours is dpo-train on packed rows, a pair's prompt once. The peer (hybrid_peer.py) is a plain loop: both sequences of a pair
whole, padded to the longest of the batch, AdamW of torch, the reference's log-probs given to both. Neither has GPU kernels. A
ratio is of the median steps of one round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import workloads
from processes import measure, took

from nemotron_dpo.steps import tiny_policy

VOCAB = 32768
CONFIG: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M*-",
    "num_hidden_layers": 18,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "mamba_num_heads": 24,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "chunk_size": 128,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
}


def main() -> None:
    """Print a line a round and the ratios' median."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _make(options, scratch)
        ratios = [_round(options, scratch, number) for number in range(options.rounds)]
        print(f"steps of ours against transformers': {statistics.median(ratios):.2f} times as fast, of {len(ratios)} rounds")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hh", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def _make(options: argparse.Namespace, scratch: Path) -> None:
    """The policy, a tokenizer trained on the transcripts, and the scored pairs, in `scratch`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    policy, rows = scratch / "policy", scratch / "rows.jsonl"
    transcripts = (turn for row in workloads._hh(options.hh) for turns in row.values() for turn in _texts(turns))
    backend = tiny_policy.train_tokenizer(transcripts, VOCAB)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tiny_policy.END, pad_token=tiny_policy.PAD)
    tokenizer.chat_template = tiny_policy.CHAT_TEMPLATE
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG))
    model.to(getattr(torch, options.precision)).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    counts = workloads.write("hh", options.hh, options.pairs, options.length, tokenizer, rows)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, {options.precision}, {counts}", flush=True)
    took("preference-tokenize", rows, "-o", scratch / "pairs.arrow", "--tokenizer", policy)
    score = ("--policy", policy, "--precision", options.precision)
    took("ref-logprobs", scratch / "pairs.arrow", "-o", scratch / "scored.arrow", *score)


def _texts(turns: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in turns]


def _round(options: argparse.Namespace, scratch: Path, number: int) -> float:
    """How many times as fast our median step is."""
    run, policy, scored = scratch / f"run{number}", scratch / "policy", scratch / "scored.arrow"
    settings = [f"policy.precision={options.precision}", f"policy.train_global_batch_size={options.batch}"]
    settings += ["policy.scheduler=null", "policy.optimizer.lr=1e-6", "dpo.val_at_start=false", "dpo.val_at_end=false"]
    settings += ["dpo.max_num_steps=1000", "dpo.max_num_epochs=1", "checkpointing.enabled=false"]
    took("dpo-train", scored, "--policy", policy, "--run-dir", run, *settings)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [step for line in lines if (step := json.loads(line).get("timing/train/total_step_time"))]
    peer, out = Path(__file__).with_name("hybrid_peer.py"), scratch / f"peer{number}.json"
    measure([sys.executable, str(peer), str(scored), str(policy), str(out), str(options.batch), options.precision])
    theirs = json.loads(out.read_text(encoding="utf-8"))
    ours, others = statistics.median(steps), statistics.median(theirs["step_seconds"])
    print(f"ours {ours:.2f} s a step, transformers {others:.2f} s, first losses {theirs['losses'][0]:.6f}", flush=True)
    return others / ours


if __name__ == "__main__":
    main()

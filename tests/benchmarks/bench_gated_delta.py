#!/usr/bin/env python3
"""The gated delta rule, forward and backward, against the rate of matrix products; and what it saves to share prompts.

  OMP_NUM_THREADS=1 python tests/benchmarks/bench_gated_delta.py --shapes 27B-tp8 --rounds 5

Rows, lines and shares are those of bench_recurrence.py. FLOPs are those that the rule needs and no others: of a chunk's T
tokens half of their T x T scores (keys with keys and queries with keys, once for a key head), half of what solves for what they
write and half of what they read of it; what keys and queries meet of the state before the chunk where there is one, and adding
to the state behind it where a chunk takes it up; backward twice that. What is computed again for the backward pass,
exponentials, inverses and what pads a chunk are not counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch
from bench_recurrence import PRODUCT, pairs_of, product, rounds_of, shared_rows, two_sequences
from torch import Tensor

from nemotron_dpo.kernels import chosen
from nemotron_dpo.kernels.chunks import ROOT, Chunks, plan
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.torch_ops.table import torch_kernels

SHAPES = {  # key heads, value heads; all of 128 channels
    "next-tp4": (4, 8),  # of one of four tensor-parallel ranks of Qwen3-Next
    "27B-tp8": (2, 6),  # of one of eight of Qwen3.5-27B
    "next": (16, 32),
}
SIZE = 128


def main() -> None:
    """Print a line a shape, row, precision and backend."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tables = {"torch": torch_kernels(), "chosen": chosen.choose()}
    for name, kind, dtype, backend in itertools.product(options.shapes, options.rows, options.precisions, options.backends):
        pairs, table = pairs_of(kind, options.tokens), tables[backend]
        shared, alone = (plan(rows(pairs), options.chunk) for rows in (shared_rows, two_sequences))
        steps = _steps(SHAPES[name], shared, alone, getattr(torch, dtype), table, device)
        rounds = rounds_of(steps, options.rounds, device)
        best = {step: min(one[step] for one in rounds) for step in rounds[0]}
        rate = 2 * PRODUCT[device.type] ** 3 / min(best["product"], best["product by the other"])
        flops = _flops(SHAPES[name], shared)
        backward = best["both"] - best["forward"]
        saved = statistics.median(one["two sequences"] / one["both"] for one in rounds)
        forward, both = f"forward {1e3 * best['forward']:.1f} ms {flops / best['forward'] / rate:.2f}", best["both"]
        print(
            f"{name} {kind} {dtype} {table.name}, {len(pairs)} pairs, {shared.num_tokens} tokens: {forward},"
            f" backward {1e3 * backward:.1f} ms {2 * flops / backward / rate:.2f}, both {3 * flops / both / rate:.2f}"
            f" of {rate / 1e9:.0f} GFLOP/s; two sequences {saved:.2f} times",
            flush=True,
        )


def _steps(
    shape: tuple[int, int], shared: Chunks, alone: Chunks, dtype: torch.dtype, table: Kernels, device: torch.device
) -> dict[str, Callable[[], object]]:
    square = torch.randn(2 * [PRODUCT[device.type]], device=device)
    inputs = {chunks: _inputs(shape, chunks.num_tokens, dtype, device) for chunks in (shared, alone)}

    def both(chunks: Chunks) -> object:
        q, k, v, g, beta = of = [x.detach().requires_grad_() for x in inputs[chunks]]
        return torch.autograd.grad(table.gated_delta(q, k, v, g, beta, chunks), of, inputs[chunks][2])

    def forward() -> object:
        q, k, v, g, beta = inputs[shared]
        return table.gated_delta(q, k, v, g, beta, shared)

    return {
        "product": lambda: product(square, "ieee"),
        "forward": forward,
        "both": lambda: both(shared),
        "product by the other": lambda: product(square, "bf16"),
        "two sequences": lambda: both(alone),
    }


def _inputs(shape: tuple[int, int], tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    groups, heads = shape
    q, k = (torch.nn.functional.normalize(torch.randn(tokens, groups, SIZE), dim=-1) for _ in range(2))
    narrow = (x.to(dtype) for x in (q * SIZE**-0.5, k, torch.randn(tokens, heads, SIZE)))
    return tuple(x.to(device) for x in (*narrow, -torch.rand(tokens, heads), torch.rand(tokens, heads)))


def _flops(shape: tuple[int, int], chunks: Chunks) -> float:
    """Of the forward pass, as the manual says."""
    groups, heads = shape
    total = 0
    for count, parent, children in zip(chunks.counts, chunks.parents, chunks.children, strict=True):
        total += 2 * count * (count + 1) * SIZE * (groups + heads)
        total += 2 * heads * count * SIZE * SIZE * (2 * (parent != ROOT) + bool(children))
    return total


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["next-tp4", "27B-tp8"])
    parser.add_argument("--rows", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--backends", nargs="+", choices=["chosen", "torch"], default=["chosen", "torch"])
    parser.add_argument("--tokens", type=int, default=1024, help="of a row, at least")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()

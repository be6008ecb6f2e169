#!/usr/bin/env python3
"""The recurrence of Mamba-2, forward and backward, against the rate of matrix products; and what it saves to share prompts.

  OMP_NUM_THREADS=1 python tests/benchmarks/bench_recurrence.py --shapes 130M --rounds 9

A row of whole pairs, prompts and responses of HH's lengths ("hh") or short prompts and responses of some 450 tokens ("long"),
goes through one layer. Lines are by shape, row, precision and backend: CPU seconds forward and backward (on a GPU seconds), the
least of the rounds, and which share that is of the rate of float32 products, 2048 x 2048 x 2048, by the faster of torch's two
libraries, measured in each round. FLOPs are those that the recurrence needs and no others: of a chunk's T tokens half of their
T x T scores (once for a group of heads) and half of what is mixed by them, reading the state before it where there is one, and
adding to the state behind it where a chunk takes it up; backward twice that. What is computed again for the backward pass,
exponentials and the convolution are not counted. "two sequences" has each response behind a prompt of its own. On a GPU where
mamba_ssm is installed its kernels take these too, in turns, and must agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workloads import HH_PROMPT, HH_RESPONSE

from nemotron_dpo.kernels import chosen
from nemotron_dpo.kernels.chunks import ROOT, Chunks, plan
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.torch_ops.table import torch_kernels

SHAPES = {  # heads, their size, groups, size of a state
    "130M": (24, 64, 1, 128),
    "nano3": (64, 64, 8, 128),  # Nemotron-3-Nano's
    "nano3-tp8": (8, 64, 1, 128),  # of one of eight tensor-parallel ranks
}
PRODUCT = {"cpu": 2048, "cuda": 8192}  # the size of its matrices
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # x, dt, A, B, C and D


@dataclass(frozen=True)
class Case:
    """A row of one layer: its chunks, inputs, the gradient of its result, and the same pairs as two sequences each."""

    name: str
    shape: tuple[int, int, int, int]
    chunks: Chunks
    inputs: Inputs
    grad: Tensor


def main() -> None:
    """Print a line a case and backend."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tables = {"torch": torch_kernels(), "chosen": chosen.choose()}
    figures: dict[str, float] = {}
    for name, kind, dtype, backend in itertools.product(options.shapes, options.rows, options.precisions, options.backends):
        pairs = pairs_of(kind, options.tokens)
        shared, alone = (
            _case(name, plan(pieces, options.chunk), getattr(torch, dtype), device)
            for pieces in (shared_rows(pairs), two_sequences(pairs))
        )
        rounds = rounds_of(_steps(shared, alone, tables[backend], device), options.rounds, device)
        of = f"{name} {kind} {dtype} {tables[backend].name}"
        print(f"{of}, {len(pairs)} pairs, {shared.chunks.num_tokens} tokens: {_said(shared, rounds, device)}", flush=True)
        figures |= {f"{of} {step} ms": 1e3 * min(one[step] for one in rounds) for step in ("forward", "backward")}
    if options.json:
        options.json.write_text(json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()}) + "\n")


def rounds_of(steps: dict[str, Callable[[], object]], num_rounds: int, device: torch.device) -> list[dict[str, float]]:
    """Seconds of each step by round; the first round, which meets its memory for the first time, is left out."""
    return [{step: _seconds(call, device) for step, call in steps.items()} for _ in range(num_rounds + 1)][1:]


def _said(case: Case, rounds: list[dict[str, float]], device: torch.device) -> str:
    best = {step: min(one[step] for one in rounds) for step in rounds[0]}
    rate = PRODUCT[device.type] ** 3 * 2 / min(best["product"], best["product by the other"])
    flops = {"forward": _flops(case), "backward": 2 * _flops(case)}
    shares = ", ".join(f"{step} {1e3 * best[step]:.1f} ms {of / best[step] / rate:.2f}" for step, of in flops.items())
    both = sum(flops.values()) / (best["forward"] + best["backward"]) / rate
    saved = statistics.median((one["two forward"] + one["two backward"]) / (one["forward"] + one["backward"]) for one in rounds)
    theirs = ", ".join(f"{step} {1e3 * seconds:.1f} ms" for step, seconds in best.items() if step.startswith("mamba_ssm"))
    return f"{shares}, both {both:.2f} of {rate / 1e9:.0f} GFLOP/s; two sequences {saved:.2f} times; {theirs}".rstrip("; ")


def _steps(shared: Case, alone: Case, table: Kernels, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    square = torch.randn(2 * [PRODUCT[device.type]], device=device)

    def forward(case: Case) -> object:
        x, dt, A, B, C, D = case.inputs
        return table.scan(x, dt, A, B, C, D, case.chunks)

    def backward(case: Case) -> object:
        x, dt, A, B, C, D = case.inputs
        return table.scan_backward(case.grad, x, dt, A, B, C, D, case.chunks)

    return {
        "product": lambda: product(square, "ieee"),
        "forward": lambda: forward(shared),
        "backward": lambda: backward(shared),
        "product by the other": lambda: product(square, "bf16"),  # which is exact where there are no tiles of bfloat16
        "two forward": lambda: forward(alone),
        "two backward": lambda: backward(alone),
        **(_theirs(alone, table) if device.type == "cuda" and importlib.util.find_spec("mamba_ssm") else {}),
    }


def product(square: Tensor, precision: str) -> None:
    """The product of a matrix with itself, by one of torch's two libraries."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before, settings.fp32_precision = settings.fp32_precision, precision
    torch.mm(square, square)
    settings.fp32_precision = before


def _theirs(alone: Case, table: Kernels) -> dict[str, Callable[[], object]]:
    """The same two sequences a pair by mamba_ssm, once its result was found to be ours."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[reportMissingImports] - an option

    ids = torch.zeros(1, alone.chunks.num_tokens, dtype=torch.int32)
    for number, piece in enumerate(alone.chunks.pieces):
        ids[0, piece.start : piece.stop] = number
    ids = ids.to(alone.grad.device)

    def forward(inputs: Inputs) -> Tensor:
        x, dt, A, B, C, D = inputs
        return mamba_chunk_scan_combined(x[None], dt[None], A, B[None], C[None], 256, D=D, seq_idx=ids)[0]

    def both() -> object:
        x, dt, A, B, C, D = (of.detach().requires_grad_() for of in alone.inputs)
        return torch.autograd.grad(forward((x, dt, A, B, C, D)), (x, dt, A, B, C, D), alone.grad)

    x, dt, A, B, C, D = alone.inputs
    ours, theirs = table.scan(x, dt, A, B, C, D, alone.chunks).float(), forward(alone.inputs).float()
    off = ((ours - theirs).norm() / ours.norm()).item()
    if not off < 2e-2:
        raise SystemExit(f"mamba_ssm computes something else: off by {off:.3g}")
    return {"mamba_ssm, two forward": lambda: forward(alone.inputs), "mamba_ssm, two forward and backward": both}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _flops(case: Case) -> float:
    """Of the forward pass, as the manual says."""
    heads, size, groups, state = case.shape
    chunks, total = case.chunks, 0
    for count, parent, children in zip(chunks.counts, chunks.parents, chunks.children, strict=True):
        total += count * (count + 1) * (groups * state + heads * size)
        total += 2 * heads * count * state * size * ((parent != ROOT) + bool(children))
    return total


def pairs_of(kind: str, tokens: int) -> list[tuple[int, int, int]]:
    """Lengths of prompt and responses, as many pairs as fit `tokens`."""
    draw = random.Random(0)
    pairs: list[tuple[int, int, int]] = []
    while sum(map(sum, pairs)) < tokens:
        if kind == "hh":
            of = tuple(max(1, min(512, round(draw.lognormvariate(*sizes)))) for sizes in (HH_PROMPT, HH_RESPONSE, HH_RESPONSE))
        else:
            of = 20, draw.randrange(440, 460), draw.randrange(440, 460)
        pairs.append((of[0], of[1], of[2]))
    return pairs


def shared_rows(pairs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Each prompt with its two responses."""
    pieces: list[tuple[int, int, int]] = []
    for prompt, chosen_tokens, rejected in pairs:
        start, number = pieces[-1][1] if pieces else 0, len(pieces)
        ends = start + prompt, start + prompt + chosen_tokens, start + prompt + chosen_tokens + rejected
        pieces += [(start, ends[0], ROOT), (ends[0], ends[1], number), (ends[1], ends[2], number)]
    return pieces


def two_sequences(pairs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Each response behind its prompt."""
    pieces: list[tuple[int, int, int]] = []
    for prompt, *responses in pairs:
        for response in responses:
            start = pieces[-1][1] if pieces else 0
            pieces.append((start, start + prompt + response, ROOT))
    return pieces


def _case(name: str, chunks: Chunks, dtype: torch.dtype, device: torch.device) -> Case:
    torch.manual_seed(0)
    heads, size, groups, state = SHAPES[name]
    tokens = chunks.num_tokens
    x, grad = (torch.randn(tokens, heads, size, device=device).to(dtype) for _ in range(2))
    B, C = (torch.randn(tokens, groups, state, device=device).to(dtype) for _ in range(2))
    dt, rates = torch.rand(tokens, heads, device=device) * 0.1, -torch.empty(heads, device=device).uniform_(1, 16)
    return Case(name, SHAPES[name], chunks, (x, dt, rates, B, C, torch.ones(heads, device=device)), grad)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["130M", "nano3"])
    parser.add_argument("--rows", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--backends", nargs="+", choices=["chosen", "torch"], default=["chosen", "torch"])
    parser.add_argument("--tokens", type=int, default=2048, help="of a row, at least")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="a file for the milliseconds")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What a window saves: attention of one long row, forward and backward, with windows of ever fewer tokens.

  python tests/benchmarks/bench_window.py [--tokens 4096] [--backend c]

Each line has the seconds of the fastest of some passes, and its part of those without a window. The work that is left is that
of the keys within the window of a block of queries, so the part falls with the window until what is in proportion to the
tokens alone remains: packing, copies, the softmax's sums.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemotron_dpo.kernels import chosen
from nemotron_dpo.kernels.scores import Scores
from support.policy_rows import packed

HEADS, GROUPS, SIZE, PASSES = 8, 2, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of the row: a quarter is the prompt")
    parser.add_argument("--backend", default="c", choices=("c", "torch"))
    given = parser.parse_args()
    os.environ["NEMOTRON_DPO_KERNELS"] = given.backend
    whole = seconds(given.tokens, None)
    print(f"{given.tokens} tokens, {chosen.kernels().name}, no window: {whole:.3f} s")
    for window in (2048, 1024, 512, 128):
        took = seconds(given.tokens, window)
        print(
            f"window {window:5d}: {took:.3f} s, {took / whole:.2f} of it; of its meetings {meetings(given.tokens, window):.2f}"
        )


def seconds(num_tokens: int, window: int | None) -> float:
    """Of the fastest pass over a row of one pair, in bfloat16."""
    row = packed(lengths(num_tokens))
    of = [torch.randn(row.num_tokens, 1, n, SIZE).bfloat16().requires_grad_() for n in (HEADS, GROUPS, GROUPS)]
    slope = torch.randn(row.num_tokens, 1, HEADS * SIZE).bfloat16()
    took = []
    for _ in range(PASSES):
        start = time.perf_counter()
        torch.autograd.grad(chosen.kernels().attend(*of, row, Scores(0.125, window)), of, slope)  # type: ignore[call-arg] - three tensors
        took.append(time.perf_counter() - start)
    return min(took)


def lengths(num_tokens: int) -> tuple[int, int, int]:
    """Of prompt, chosen and rejected response."""
    prompt = num_tokens // 4
    return prompt, (num_tokens - prompt) // 2, num_tokens - prompt - (num_tokens - prompt) // 2


def meetings(num_tokens: int, window: int) -> float:
    """Queries times the keys they see, as a part of those without a window."""
    prompt, chosen_tokens, rejected = lengths(num_tokens)

    def along(path: int, most: int) -> int:
        return sum(min(place + 1, most) for place in range(path))

    def pair(most: int) -> int:
        return along(prompt + chosen_tokens, most) + along(prompt + rejected, most) - along(prompt, most)

    return pair(window) / pair(num_tokens)


if __name__ == "__main__":
    main()

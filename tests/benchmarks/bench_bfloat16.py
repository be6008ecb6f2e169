"""Products of bfloat16 by torch against those by float32 copies, which serve where torch has none that is fast.

  python tests/benchmarks/bench_bfloat16.py [--threads 1] [--rounds 5]

A line a product [T, K] x [K, N] as linear layers have them: times of both in milliseconds, the best of the rounds, which take
turns, and their ratio. Layers of the tiny policy, of SmolLM2-135M and of a policy of 1B.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "libs")]

from nemotron_dpo.kernels.torch_ops.bfloat16_matmul import by_float32, is_slow  # noqa: E402 - the path comes first
from nemotron_dpo.kernels.torch_ops.float32_matmul import prefer_onednn  # noqa: E402 - as above

SIZES = ((2048, 64, 192), (2048, 576, 1536), (2048, 2048, 2048))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    prefer_onednn()
    print(
        f"{torch.backends.cpu.get_cpu_capability()}: by {'float32 copies' if is_slow() else 'torch'}; {asked.threads} threads"
    )
    for tokens, inputs, outputs in SIZES:
        x, weight = torch.randn(tokens, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
        ways = {"torch": torch.matmul, "copies": by_float32(torch.matmul)}
        rounds = [{name: _milliseconds(way, x, weight) for name, way in ways.items()} for _ in range(asked.rounds)]
        best = {name: min(one[name] for one in rounds) for name in ways}
        times = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in best.items())
        print(f"{tokens} x {inputs} x {outputs}: {times}, {best['torch'] / best['copies']:.2f} x")


def _milliseconds(multiply: Callable[..., object], x: torch.Tensor, weight: torch.Tensor) -> float:
    begun = time.perf_counter()
    multiply(x, weight.t())
    return (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    main()

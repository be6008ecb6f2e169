#!/usr/bin/env python3
"""What it costs to know more of each response token than its log-prob: a step with and without, taking turns in one process.

  python tests/benchmarks/bench_token_values.py 135M --precision bfloat16 --pairs 64,192,4 --rounds 9

A step is the forward and backward pass of one packed row of random pairs (PROMPT,RESPONSE,COUNT) of a random policy of that
size, by the kernels that the environment asks for, without the optimizer's update. Printed are CPU seconds, of which neighbours
of the machine take less than of wall time: the least of the rounds, their median, and the least against that of a step without.
On a busy machine set OMP_NUM_THREADS=1: threads that wait for each other take CPU seconds too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import random_policy


def main() -> None:
    """Print a line a kind of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=random_policy.SIZES)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--pairs", default="64,192,4", metavar="PROMPT,RESPONSE,COUNT")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    steps = _steps(options.size, options.precision, *map(int, options.pairs.split(",")))
    took: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, options.rounds):  # the first meets its memory for the first time
        for name, step in steps.items():
            started = time.process_time()
            step()
            if round_ >= 0:
                took[name].append(time.process_time() - started)
    for name, seconds in took.items():
        more = min(seconds) / min(took["without"]) - 1
        print(f"{name:24} {min(seconds):8.3f} {statistics.median(seconds):8.3f} CPU s {100 * more:+5.1f} %", flush=True)


def _steps(size: str, precision: str, prompt: int, response: int, count: int) -> dict[str, Callable[[], object]]:
    """One step without values, the same once more, which says what the noise is, and with some and all of them."""
    import numpy as np
    import torch

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.rows import pack_row
    from nemotron_dpo.policy.token_values import NAMES
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training.batches import PairBatch

    parallel.initialize()
    draw = np.random.default_rng(0)
    prompts, chosen, rejected = (
        [draw.integers(3, 1000, length) for _ in range(count)] for length in (prompt, response, response)
    )
    row = pack_row(prompts, chosen, rejected)
    batch = PairBatch(row, torch.zeros(len(row.targets_R)), tuple(range(count)))
    with tempfile.TemporaryDirectory() as folder:
        random_policy.write_policy(size, Path(folder))
        policy = TrainablePolicy(open_policy(resolve(Path(folder)), precision), Optimization(lr=1e-6))

    def loss(_: object, logps_R: torch.Tensor, values: object = None) -> tuple[torch.Tensor, object]:
        return row.sums_of_responses(logps_R).square().sum() * 1e-6, values

    asked = {"without": frozenset(), "without again": frozenset(), "log_sum_squares (WPO)": frozenset({"log_sum_squares"})}
    asked |= {"entropy, accuracy": NAMES - {"log_sum_squares"}}
    return {name: lambda names=names: policy.accumulate([batch], loss, names) for name, names in asked.items()}


if __name__ == "__main__":
    main()

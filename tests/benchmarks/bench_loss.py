#!/usr/bin/env python3
"""What each objective's own loss and slope take of a step, in CPU seconds of one process: all objectives, taking turns.

  OMP_NUM_THREADS=1 python tests/benchmarks/bench_loss.py 135M --pairs 64,128,4 --rounds 5

The passes of objectives whose loss is a pair's own are the same but for that loss, and for what it asks of the output layer
(`bench_token_values.py`). So a step is timed with dpo's, forward and backward of one packed row of a random policy, and the
loss of every objective on the log-probs of that row, from log-probs to their slopes and the step's metrics. Printed are
milliseconds, the least of the rounds, and by how much a step is longer than dpo's. A step of many threads on a busy machine is
timed too long, which makes the percents too small: OMP_NUM_THREADS=1 and a small policy are the strictest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import random_policy

if TYPE_CHECKING:
    from nemotron_dpo.objective.protocol import Objective

_NEEDED = {"beta": 0.1}  # settings without a default
_REPEATS = 20  # of a loss within a round: one takes less than the clock's tick of some machines


def main() -> None:
    """Print a line an objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=random_policy.SIZES)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--pairs", default="64,128,4", metavar="PROMPT,RESPONSE,COUNT")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    step, losses = _parts(options.size, options.precision, *map(int, options.pairs.split(",")))
    steps, took = [], {name: [] for name in losses}
    for round_ in range(-1, options.rounds):  # the first meets its memory for the first time
        spent = _seconds(step, 1)
        found = {name: _seconds(loss, _REPEATS) for name, loss in losses.items()}
        if round_ >= 0:
            steps.append(spent)
            took = {name: [*took[name], seconds] for name, seconds in found.items()}
    least = {name: min(seconds) for name, seconds in took.items()}
    print(f"a step of {1e3 * min(steps):.1f} ms with dpo")
    for name in sorted(least, key=lambda name: least[name]):
        more = (least[name] - least["dpo"]) / min(steps)
        print(f"  {1e3 * least[name]:7.3f} ms  {100 * more:+6.2f} % of dpo's step  {name}", flush=True)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - started) / repeats


def _parts(
    size: str, precision: str, prompt: int, response: int, count: int
) -> tuple[Callable[[], object], dict[str, Callable[[], object]]]:
    """A step with dpo, and by name the loss of each objective that does not need the whole batch."""
    import numpy as np
    import torch

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.objective import registry
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.rows import pack_row
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training.batches import PairBatch
    from nemotron_dpo.training.objective_loss import loss_of

    parallel.initialize()
    draw = np.random.default_rng(0)
    lengths = (prompt, response, response)
    prompts, chosen, rejected = ([draw.integers(3, 1000, length) for _ in range(count)] for length in lengths)
    row = pack_row(prompts, chosen, rejected)
    batch = PairBatch(
        row, -2 * torch.rand(len(row.targets_R)), tuple(range(count)), torch.tensor([[2.0, 1.0]]).repeat(count, 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        random_policy.write_policy(size, Path(folder))
        policy = TrainablePolicy(open_policy(resolve(Path(folder)), precision), Optimization(lr=1e-6))
    logps_R = (-2 * torch.rand(len(row.targets_R))).requires_grad_()
    values = dict.fromkeys(("log_sum_squares", "entropy", "is_most_probable"), -torch.rand(len(row.targets_R)))

    def own(objective: Objective) -> Callable[[], object]:
        loss, asked = loss_of(objective), {key: value for key, value in values.items() if key in objective.needs.token_values}
        return lambda: torch.autograd.grad(loss(batch, logps_R, asked)[0], logps_R)

    made = {
        name: registry.make(name, **{key: value for key, value in _NEEDED.items() if key in entry.settings})
        for name, entry in registry.entries().items()
    }
    dpo = loss_of(made["dpo"])
    alone = {name: own(objective) for name, objective in made.items() if not objective.needs.whole_batch}
    return lambda: policy.accumulate([batch], dpo, frozenset()), alone


if __name__ == "__main__":
    main()

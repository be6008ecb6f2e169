"""Validation: the same loss and metrics as in training, forward only, on pairs that are not trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training import noise
from nemotron_dpo.training.batches import GlobalBatch, micro_batches, share
from nemotron_dpo.training.carried import Carried
from nemotron_dpo.training.gradients import measured
from nemotron_dpo.training.record import Record
from nemotron_dpo.training.settings import LoopSettings


def validate(
    policy: TrainablePolicy, sets: Mapping[str, Pairs], settings: LoopSettings, step: int, carried: Carried
) -> Iterator[Record]:
    """A record of each set, of the policy as it is after `step`, which left `carried`: a validation changes nothing of it.

    Where the loss of a pair depends on others, a global batch is the next `batch_size` pairs of the set.
    """
    for name, pairs in sets.items():
        pairs.check_unchanged()
        wanted = settings.validation_of(name)
        rows = list(range(wanted.num_pairs(len(pairs))))
        mine = share(policy.model, pairs, rows)
        started = time.perf_counter()
        batch = GlobalBatch(rows, micro_batches(pairs, mine, settings.batches.packing))
        values, each = measured(policy, pairs, batch, carried.objective, settings, wanted.batch_size)
        values |= each.metrics() | noise.floor_metric(carried.reward_noise, values["num_valid_samples"])
        split = f"validation-{name}"
        named = {f"{split}/{key}": value for key, value in values.items()}
        yield Record(step, split, {**named, f"timing/{split}/total_validation_time": time.perf_counter() - started}, each)

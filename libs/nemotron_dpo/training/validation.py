"""Validation: the same loss and metrics as in training, forward only, on pairs that are not trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training import noise
from nemotron_dpo.training.batches import micro_batches, share
from nemotron_dpo.training.objective_loss import loss_of, means_over_job
from nemotron_dpo.training.record import Record
from nemotron_dpo.training.settings import LoopSettings


def validate(
    policy: TrainablePolicy, sets: Mapping[str, Pairs], settings: LoopSettings, step: int, reward_noise: float | None
) -> Iterator[Record]:
    """A record of each set, of the policy as it is after `step`."""
    for name, pairs in sets.items():
        rows = list(range(settings.validation.num_pairs(len(pairs))))
        mine = share(policy.model, pairs, rows)
        started = time.perf_counter()
        batches = micro_batches(pairs, mine, settings.batches.packing)
        reports = policy.evaluate(batches, loss_of(settings.objective), settings.token_values)
        values = means_over_job(reports, settings.objective, token_metrics=settings.token_metrics)
        values |= noise.floor_metric(reward_noise, values["num_valid_samples"])
        split = f"validation-{name}"
        named = {f"{split}/{key}": value for key, value in values.items()}
        yield Record(step, split, {**named, f"timing/{split}/total_validation_time": time.perf_counter() - started})

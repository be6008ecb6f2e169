"""One training step: batch, gradients, checks, update, and the record of all of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import peak_memory
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices
from nemotron_dpo.training import guards, noise
from nemotron_dpo.training.batches import PairBatch, micro_batches, share
from nemotron_dpo.training.objective_loss import PairReport, lines_not_finite, loss_of, means_over_job
from nemotron_dpo.training.record import TRAIN, Record
from nemotron_dpo.training.settings import BatchSettings, LoopSettings


def train_step(policy: TrainablePolicy, data: Pairs, settings: LoopSettings, step: int, reward_noise: float | None) -> Record:
    """Move `policy` by one global batch. Raises UserError, before anything moves, where the guards refuse what it gives.

    Where `reward_noise` is None it is measured, and is in the record.
    """
    started, objective = time.perf_counter(), settings.objective
    batches = _batches(policy, data, settings.batches, step)
    reports = policy.accumulate(batches, loss_of(objective), settings.token_values)
    values = means_over_job(reports, objective, token_metrics=settings.token_metrics)
    guards.check_finite(step, values, lines_not_finite(data, batches, reports))
    if step == 1 and settings.gate_precision:
        guards.check_first_step(values, objective.terms, settings.gate_precision)
    paused = time.perf_counter()
    if reward_noise is None and objective.needs.rejected:
        values["reward_noise"] = reward_noise = _reward_noise(policy, batches, reports, objective)
    started += time.perf_counter() - paused  # it is measured once a run and not counted as the step's
    values |= noise.floor_metric(reward_noise, values["num_valid_samples"])
    lr = settings.updates.learning_rates[step - 1]
    values |= {"grad_norm": policy.step(lr), "lr": lr, "wd": settings.updates.weight_decay}
    guards.check_finite(step, values, [])
    return _record(step, values, settings.batches.size, time.perf_counter() - started)


def _batches(policy: TrainablePolicy, data: Pairs, settings: BatchSettings, step: int) -> list[PairBatch]:
    """This rank's micro batches of the global batch of `step`."""
    rows = batch_indices(step - 1, len(data), settings.size, seed=settings.seed, shuffle=settings.shuffle).tolist()
    return micro_batches(data, share(policy.model, data, rows), settings.packing)


def _reward_noise(
    policy: TrainablePolicy, batches: Sequence[PairBatch], reports: Sequence[PairReport], objective: Objective
) -> float:
    """Measured on the first micro batch, whose rewards the weights as they are gave already: it costs one forward pass."""
    with noise.moved_by_one_unit(policy.model):
        moved = policy.evaluate(batches[:1], loss_of(objective), objective.needs.token_values)
    if not parallel.is_last_stage():
        return noise.rms_over_job(torch.zeros(0))
    return noise.rms_over_job(moved[0].rewards_2P - reports[0].rewards_2P)


def _record(step: int, values: dict[str, float], num_pairs: int, seconds: float) -> Record:
    measured = {
        **{f"{TRAIN}/{name}": value for name, value in values.items()},
        "timing/train/total_step_time": seconds,
        "timing/train/pairs_per_sec": num_pairs / seconds,
        "timing/train/valid_tokens_per_sec": values["global_valid_toks"] / seconds,
        "timing/train/valid_tokens_per_sec_per_gpu": values["global_valid_toks"] / seconds / parallel.world_size(),
        **peak_memory(),
    }
    return Record(step, TRAIN, measured)

"""One training step: batch, gradients, checks, update, and the record of all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from nemotron_dpo.objective.weighted_sum import state_of
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import peak_memory
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices, batches_per_epoch
from nemotron_dpo.training import guards, noise
from nemotron_dpo.training.batches import GlobalBatch, micro_batches, share
from nemotron_dpo.training.carried import Carried
from nemotron_dpo.training.gradients import Gradients, gradients
from nemotron_dpo.training.pair_values import PairValues
from nemotron_dpo.training.record import STATE, TRAIN, Record
from nemotron_dpo.training.settings import BatchSettings, LoopSettings
from nemotron_dpo.training.timer import Timer
from nemotron_dpo.training.utilization import utilization


def train_step(
    policy: TrainablePolicy, data: Pairs, settings: LoopSettings, step: int, carried: Carried
) -> tuple[Record, Carried]:
    """Move `policy` by one global batch. Raises UserError, before anything moves, where the guards refuse what it gives.

    `carried` is what the step before left. Where the noise of rewards is not known it is measured, and is in the record.
    """
    started, timer = time.perf_counter(), Timer()
    data.check_unchanged()
    with timer.time("data_processing"):
        batch = _global_batch(policy, data, settings.batches, step)
    with timer.time("policy_training/forward_backward"):
        computed = gradients(policy, data, batch, carried.objective, settings)
    data.check_unchanged()  # nor is anything of the last step learned from what is not what was checked
    carried, values = replace(carried, objective=computed.objective), _with_router_loss(policy, computed.values)
    values |= {f"{STATE}{name}": value for name, value in state_of(carried.objective).items()}
    guards.check_finite(step, values, computed.lines_not_finite)
    if step == 1 and settings.gate_precision:
        guards.check_first_step(values, settings.objective.terms, settings.gate_precision)
    paused = time.perf_counter()
    if carried.reward_noise is None and carried.objective.needs.rejected:
        values["reward_noise"] = _reward_noise(policy, computed)
        carried = replace(carried, reward_noise=values["reward_noise"])
    started += time.perf_counter() - paused  # it is measured once a run and not counted as the step's
    values |= noise.floor_metric(carried.reward_noise, values["num_valid_samples"])
    lr = settings.updates.learning_rates[step - 1]
    with timer.time("policy_training/optimizer"):
        values |= {"grad_norm": policy.step(lr), "lr": lr, "wd": settings.updates.weight_decay}
    guards.check_finite(step, values, [])
    values |= {**computed.pairs.metrics(), "epoch": step / batches_per_epoch(len(data), settings.batches.size)}
    timer.seconds["total_step_time"] = time.perf_counter() - started
    values |= utilization(policy.model, computed.pairs, timer.seconds["policy_training"])
    return _record(step, values, computed.pairs, timer.seconds), carried


def _with_router_loss(policy: TrainablePolicy, values: dict[str, float]) -> dict[str, float]:
    """`values` with the auxiliary loss of the policy's routers, where it has one: as a metric, and in the loss."""
    routers = policy.router_loss(values["num_valid_samples"])
    if routers is None:
        return values
    return {**values, "loss": values["loss"] + routers.added, routers.metric: routers.value}


def _global_batch(policy: TrainablePolicy, data: Pairs, settings: BatchSettings, step: int) -> GlobalBatch:
    """The global batch of `step`, and this rank's micro batches of it."""
    rows = batch_indices(step - 1, len(data), settings.size, seed=settings.seed, shuffle=settings.shuffle).tolist()
    return GlobalBatch(rows, micro_batches(data, share(policy.model, data, rows), settings.packing))


def _reward_noise(policy: TrainablePolicy, computed: Gradients) -> float:
    """Measured on the first micro batch, whose rewards the weights as they are gave already: it costs one forward pass."""
    with noise.moved_by_one_unit(policy.model):
        moved_2P = computed.rewards()
    assert moved_2P is not None
    assert computed.rewards_2P is not None
    return noise.rms_over_job(moved_2P - computed.rewards_2P)


def _record(step: int, values: dict[str, float], pairs: PairValues, times: Mapping[str, float]) -> Record:
    seconds = times["total_step_time"]
    measured = {
        **{f"{TRAIN}/{name}": value for name, value in values.items()},
        **{f"timing/{TRAIN}/{name}": value for name, value in times.items()},
        "timing/train/pairs_per_sec": len(pairs.rows) / seconds,
        "timing/train/valid_tokens_per_sec": values["global_valid_toks"] / seconds,
        "timing/train/valid_tokens_per_sec_per_gpu": values["global_valid_toks"] / seconds / parallel.world_size(),
        **peak_memory(),
    }
    return Record(step, TRAIN, measured, pairs)

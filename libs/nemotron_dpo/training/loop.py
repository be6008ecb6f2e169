"""The loop: take a batch, accumulate, step, check, report; validate now and then. Every number it yields is global.

Yields records, dicts in NeMo-RL's metric names with "step" first; what is done with them is the caller's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.dpo import Objective, pair_losses, responses
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import peak_memory
from nemotron_dpo.policy.trainable import Loss, TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices, batches_per_epoch
from nemotron_dpo.training import guards, noise
from nemotron_dpo.training.batches import Packing, PairBatch, micro_batches, share
from nemotron_dpo.training.stopping import Stop

Record = dict[str, float]


@dataclass(frozen=True)
class _Report:
    """Of one micro batch: metrics.SUMS, whether the loss of each pair is finite, and chosen and rejected rewards.

    Read late: a GPU would be waited for.
    """

    sums: Tensor
    finite_P: Tensor
    rewards_2P: Tensor


@dataclass(frozen=True)
class Settings:
    """The length and shape of a run; `learning_rates` has one entry a step. Batch sizes count pairs over all ranks."""

    objective: Objective
    batch_size: int
    learning_rates: Sequence[float]
    weight_decay: float
    packing: Packing
    seed: int = 42
    shuffle: bool = True
    val_period: int = 0
    val_batches: int = 0
    val_batch_size: int = 8
    val_at_start: bool = True
    val_at_end: bool = True
    save_period: int = 0  # steps between checkpoints; the last step has one in any case
    gate_precision: str | None = None  # check ln 2 at step 1 to this precision; None where the reference is another policy


def num_steps(num_pairs: int, batch_size: int, max_steps: int, max_epochs: int, data_parallel: int) -> int:
    """Steps until the first of the two limits. Raises UserError for a batch that ranks or data cannot make up."""
    if batch_size % data_parallel:
        raise UserError(
            f"policy.train_global_batch_size {batch_size} does not divide over {data_parallel} data-parallel ranks",
            remedy=f"make it a multiple of {data_parallel}",
        )
    if num_pairs < batch_size:
        raise UserError(
            f"policy.train_global_batch_size {batch_size} is more than the {num_pairs} pairs there are", remedy="lower it"
        )
    return min(max_steps, max_epochs * batches_per_epoch(num_pairs, batch_size))


def check_validation(sets: Mapping[str, Pairs], data_parallel: int) -> None:
    """Raise UserError for a validation set that cannot give every data-parallel rank a pair."""
    for name, pairs in sets.items():
        if len(pairs) < data_parallel:
            raise UserError(f"validation set {name} has {len(pairs)} pairs for {data_parallel} data-parallel ranks")


def train(
    policy: TrainablePolicy,
    data: Pairs,
    validation: Mapping[str, Pairs],
    settings: Settings,
    save: Callable[[int], None],
    *,
    stop: Stop,
    done: int = 0,
    reward_noise: float | None = None,
) -> Iterator[Record]:
    """Train for len(learning_rates) steps, or until `stop`, yielding a record a step and a record a validation.

    The first `done` steps were taken by the run that is resumed. `save` is called with the step where a checkpoint is due,
    after all records of that step were taken. Where no `reward_noise` is given, the first step measures it and has it in its
    record; all records after it have the floor of their mean rewards.
    """
    last = len(settings.learning_rates)
    if settings.val_at_start and done == 0:
        yield from _validate(policy, validation, settings, 0, reward_noise)
    for step in range(done + 1, last + 1):
        started = time.time()
        record = _train_step(policy, data, settings, step, reward_noise)
        reward_noise = record.get("train/reward_noise", reward_noise)
        yield record
        ends_early = step < last and stop.due(time.time() - started)
        due = settings.val_period > 0 and step % settings.val_period == 0
        if due or (step == last and settings.val_at_end):
            yield from _validate(policy, validation, settings, step, reward_noise)
        if ends_early or step == last or (settings.save_period > 0 and step % settings.save_period == 0):
            save(step)
        if ends_early:
            return


def _train_step(policy: TrainablePolicy, data: Pairs, settings: Settings, step: int, reward_noise: float | None) -> Record:
    started = time.perf_counter()
    rows = batch_indices(step - 1, len(data), settings.batch_size, seed=settings.seed, shuffle=settings.shuffle).tolist()
    mine = share(policy.model, data, rows)
    batches = micro_batches(data, mine, settings.packing)
    reports = policy.accumulate(batches, _loss(settings.objective))
    values = metrics.means(_total(reports), settings.objective)
    guards.check_finite(step, values, _lines(data, batches, reports))
    if step == 1 and settings.gate_precision and settings.objective.needs_reference:
        guards.check_first_step(values["preference_loss"], settings.gate_precision, settings.objective.beta)
    paused = time.perf_counter()
    if reward_noise is None and settings.objective.needs_reference:
        values["reward_noise"] = reward_noise = _reward_noise(policy, batches, reports, settings.objective)
    measuring = time.perf_counter() - paused  # once a run: not counted as the step's
    values |= _noise_floor(reward_noise, values)
    lr = settings.learning_rates[step - 1]
    values |= {"grad_norm": policy.step(lr), "lr": lr, "wd": settings.weight_decay}
    guards.check_finite(step, values, [])
    seconds = time.perf_counter() - started - measuring
    return {
        "step": step,
        **{f"train/{name}": value for name, value in values.items()},
        "timing/train/total_step_time": seconds,
        "timing/train/pairs_per_sec": len(rows) / seconds,
        "timing/train/valid_tokens_per_sec_per_gpu": values["global_valid_toks"] / seconds / parallel.world_size(),
        **peak_memory(),
    }


def _reward_noise(
    policy: TrainablePolicy, batches: Sequence[PairBatch], reports: Sequence[_Report], objective: Objective
) -> float:
    """Measured on the first micro batch, whose rewards the weights as they are gave already: it costs one forward pass."""
    with noise.moved_by_one_unit(policy.model):
        moved = policy.evaluate(batches[:1], _loss(objective))
    if not parallel.is_last_stage():
        return noise.rms_over_job(torch.zeros(0))
    return noise.rms_over_job(moved[0].rewards_2P - reports[0].rewards_2P)


def _noise_floor(reward_noise: float | None, values: Record) -> Record:
    """What mean rewards of as many pairs are noise below, where that was measured."""
    return {} if reward_noise is None else {"reward_noise_floor": noise.floor(reward_noise, values["num_valid_samples"])}


def _validate(
    policy: TrainablePolicy, sets: Mapping[str, Pairs], settings: Settings, step: int, reward_noise: float | None
) -> Iterator[Record]:
    for name, pairs in sets.items():
        limit = settings.val_batches * settings.val_batch_size if settings.val_batches > 0 else len(pairs)
        rows = list(range(min(limit, len(pairs))))
        mine = share(policy.model, pairs, rows)
        started = time.perf_counter()
        reports = policy.evaluate(micro_batches(pairs, mine, settings.packing), _loss(settings.objective))
        values = metrics.means(_total(reports), settings.objective)
        values |= _noise_floor(reward_noise, values)
        yield {
            "step": step,
            **{f"validation-{name}/{key}": value for key, value in values.items()},
            f"timing/validation-{name}/total_validation_time": time.perf_counter() - started,
        }


def _loss(objective: Objective) -> Loss:
    """The loss of a packed row, and of it what a step reports."""

    def loss(batch: PairBatch, logps_R: Tensor) -> tuple[Tensor, _Report]:
        sides = responses(logps_R, batch.ref_logps_R, batch.row.response_R, batch.row.num_pairs)
        losses = pair_losses(objective, sides)
        rewards_2P = torch.stack((losses.chosen_reward, losses.rejected_reward)).detach()
        return losses.loss.sum(), _Report(metrics.sums(losses, sides), torch.isfinite(losses.loss.detach()), rewards_2P)

    return loss


def _total(reports: Sequence[_Report]) -> Tensor:
    """Sums of all micro batches of all ranks; ranks before the last pipeline stage have none of their own."""
    if parallel.is_last_stage():
        return parallel.sum_over_job(torch.stack([row.sums for row in reports]).sum(0))
    return parallel.sum_over_job(torch.zeros(len(metrics.SUMS), dtype=torch.float64))


def _lines(data: Pairs, batches: Sequence[PairBatch], reports: Sequence[_Report]) -> list[int]:
    """Lines of the original input that pairs of all ranks came from whose loss is not finite."""
    rows = zip(batches, reports, strict=True) if parallel.is_last_stage() else ()
    mine = [pair for batch, row in rows for pair, fine in zip(batch.pairs, row.finite_P.tolist(), strict=True) if not fine]
    everyone = {row for part in parallel.gather(mine) for row in part}
    return sorted(int(data.source_lines[row]) for row in everyone)

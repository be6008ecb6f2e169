"""The loop of a run: its objective, batches, schedule and validation, and what may surprise in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nemotron_dpo.wiring.data import OpenPairs, reference_is_policy
from nemotron_dpo.wiring.model import layout

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.training.guards.watch import Watch
    from nemotron_dpo.training.resume import ResumeState
    from nemotron_dpo.training.settings import BatchSettings, LoopSettings, ValidationSettings


def settings(run: RunConfig, data: Pairs, sets: Mapping[str, Pairs]) -> LoopSettings:
    """Plain arguments for the loop; everything that can be refused without a model is refused here."""
    from nemotron_dpo.config import objective_of, of_val_set
    from nemotron_dpo.policy.parallel import job_size
    from nemotron_dpo.training import schedule
    from nemotron_dpo.training.objective_loss import check_needs
    from nemotron_dpo.training.settings import LoopSettings, UpdateSettings, check_validation, num_steps

    dpo, policy, objective = run.dpo, run.policy, objective_of(run.dpo)
    check_needs(objective)
    replicas = layout(run).data(job_size())
    steps = num_steps(len(data), policy.train_global_batch_size, dpo.max_num_steps, dpo.max_num_epochs, replicas)
    check_validation(sets, replicas)
    rates = schedule.rates(lr=policy.optimizer.lr, total_steps=steps, **asdict(policy.scheduler))
    return LoopSettings(
        objective=objective,
        batches=_batches(run),
        updates=UpdateSettings(rates, policy.optimizer.weight_decay),
        validation=_validation(asdict(run.dpo)),
        val_sets={name: _validation(of_val_set(run.dpo, name)) for name in run.dpo.val_sets},
        save_period=run.checkpointing.save_period,
        ft_save_period=run.checkpointing.ft_save_period or 0,
        gate_precision=policy.precision if reference_is_policy(run) else None,
        token_metrics=run.logger.token_metrics,
    )


def watch(run: RunConfig, made: LoopSettings) -> Watch | None:
    """What watches over a run with the settings `made`; None where nobody is to."""
    from nemotron_dpo.config import kl_penalty
    from nemotron_dpo.training.guards.remedies import Tuning
    from nemotron_dpo.training.guards.watch import Watch, WatchSettings

    if run.dpo.on_divergence == "off":
        return None
    beta, is_plain = kl_penalty(run.dpo)
    rates, clips = made.updates.learning_rates, run.policy.max_grad_norm is not None
    tuning = Tuning(run.policy.optimizer.lr, rates, beta, sums=is_plain, clips=clips)
    starts_exactly = made.gate_precision is not None and None not in made.objective.terms.values()
    return Watch(WatchSettings(tuning, run.dpo.on_divergence == "stop", made.objective.needs.rejected, starts_exactly))


def _batches(run: RunConfig) -> BatchSettings:
    from nemotron_dpo.training.settings import BatchSettings, Packing

    return BatchSettings(
        size=run.policy.train_global_batch_size,
        packing=Packing(row_tokens(run), run.policy.train_micro_batch_size),
        seed=run.dpo.seed,
        shuffle=run.data.shuffle,
    )


def _validation(keys: Mapping[str, Any]) -> ValidationSettings:
    from nemotron_dpo.training.settings import ValidationSettings

    return ValidationSettings(
        period=keys["val_period"],
        batches=keys["val_batches"],
        batch_size=keys["val_global_batch_size"],
        at_start=keys["val_at_start"],
        at_end=keys["val_at_end"],
    )


def row_tokens(run: RunConfig) -> int | None:
    """The most tokens of a packed row; None where rows are counted in pairs."""
    packing = run.policy.sequence_packing
    if not packing.enabled:
        return None
    return packing.train_mb_tokens or max(2048, 2 * run.policy.max_total_sequence_length)


def save_by(run: RunConfig) -> float | None:
    """Seconds from the start of the process by which a checkpoint must have been begun."""
    from nemotron_dpo.config import seconds_until

    limit = run.checkpointing.checkpoint_must_save_by
    return None if limit is None else seconds_until(limit)


def remarks(run: RunConfig, pairs: OpenPairs, made: LoopSettings) -> list[str]:
    """What `made`, the settings of `run`, come to on this data and on these processes, where that may surprise."""
    from nemotron_dpo.config import DpoConfig, ranking
    from nemotron_dpo.policy.parallel import job_size
    from nemotron_dpo.training import remarks

    schedule, keep, asked = run.policy.scheduler, run.checkpointing, run.cluster.gpus_per_node * run.cluster.num_nodes
    asked_for = (run.dpo.val_batches, run.dpo.val_global_batch_size)
    is_asked = asked_for != (DpoConfig.val_batches, DpoConfig.val_global_batch_size)
    sets, sizes = pairs.sets, {name: len(own) for name, own in pairs.sets.items()}
    lines = [
        *remarks.on_schedule(made.updates.learning_rates, run.dpo.max_num_steps, schedule.warmup_steps, schedule.milestones),
        *remarks.on_batches(made, len(pairs.train)),
        *remarks.on_validation(made, sizes, is_asked=is_asked),
        *remarks.on_overlap(pairs.trained_on, sizes),
    ]
    if keep.enabled and not sets:
        lines += remarks.on_retention(made, keep.keep_top_k, keep.metric_name, ranking(run, sets))
    if asked not in (1, job_size()):
        lines.append(f"cluster.* asks for {asked} processes, and this is a run of {job_size()}: torchrun starts them")
    if run.data.validation and not sets:
        lines.append("data.validation is not read here: give --validation NAME=FILE of scored pairs")
    return lines


def remarks_on_rates(run: RunConfig, data: Pairs, made: LoopSettings, resumed: ResumeState) -> list[str]:
    """Where the steps that were taken had other learning rates than they have in a run of the settings `made`."""
    from nemotron_dpo.training.schedule import other_rates

    saved = resumed.identity.free
    steps, epochs = saved.get("dpo.max_num_steps"), saved.get("dpo.max_num_epochs")
    dpo = replace(run.dpo, max_num_steps=steps or run.dpo.max_num_steps, max_num_epochs=epochs or run.dpo.max_num_epochs)
    before = settings(replace(run, dpo=dpo), data, {}).updates.learning_rates
    line = other_rates(before, made.updates.learning_rates, resumed.step)
    return [line] if line else []

"""From a run's configuration to the plain arguments of the libraries. No other module knows both.

torch and megatron-core are imported inside the functions: an executable that imports this still prints its help at once.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.policy.layout import Layout
    from nemotron_dpo.policy.load_balancing import LoadBalancing
    from nemotron_dpo.policy.lora_targets import Lora
    from nemotron_dpo.policy.recompute import Recompute
    from nemotron_dpo.policy.trainable import Optimization
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.data import DataRules
    from nemotron_dpo.training.resume import Identity
    from nemotron_dpo.training.saving import Checkpoints
    from nemotron_dpo.training.settings import BatchSettings, LoopSettings, ValidationSettings
    from nemotron_dpo.training.sinks import RecordedRun


def data_rules(run: RunConfig, policy: ModelSource) -> DataRules:
    """What pairs must be for a run that starts from `policy`."""
    from nemotron_dpo.config import objective_of
    from nemotron_dpo.training.data import DataRules

    needs = objective_of(run.dpo).needs
    return DataRules(
        policy,
        scored=needs.reference,
        max_length=run.policy.max_total_sequence_length,
        own_reference=_reference_is_policy(run),
        own_tokenizer=run.policy.tokenizer.name is None,
        row_rewards=needs.row_rewards,
        ordered_rewards=needs.ordered_rewards,
    )


def identity(run: RunConfig, policy: ModelSource, data: Pairs, sets: Mapping[str, Pairs], *, has_routers: bool) -> Identity:
    """What makes a run that starts from `policy` this one; digests are of the first rank alone, which compares them.

    `has_routers`: the policy has experts.
    """
    from nemotron_dpo.config import identity, objective_of
    from nemotron_dpo.policy.parallel import kernels_of_job, rank
    from nemotron_dpo.training.data import weights_digest
    from nemotron_dpo.training.resume import Identity, digest

    with_rewards = objective_of(run.dpo).needs.row_rewards

    def of(pairs: Pairs) -> str:
        return digest(pairs, with_rewards=with_rewards) if rank() == 0 else ""

    fixed, free = identity(run, has_routers=has_routers)
    validation = {name: of(pairs) for name, pairs in sets.items()}
    return Identity(of(data), weights_digest(policy), fixed, free, validation, kernels_of_job())


def settings(run: RunConfig, data: Pairs, sets: Mapping[str, Pairs]) -> LoopSettings:
    """Plain arguments for the loop; everything that can be refused without a model is refused here."""
    from nemotron_dpo.config import objective_of
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
        validation=_validation(run),
        save_period=run.checkpointing.save_period,
        ft_save_period=run.checkpointing.ft_save_period or 0,
        gate_precision=policy.precision if _reference_is_policy(run) else None,
        token_metrics=run.logger.token_metrics,
    )


def _reference_is_policy(run: RunConfig) -> bool:
    """Whether the initial policy itself must have scored the pairs, so that step 1 must read what the objective says."""
    from nemotron_dpo.config import objective_of

    return objective_of(run.dpo).needs.reference and not run.dpo.allow_reference_mismatch


def _batches(run: RunConfig) -> BatchSettings:
    from nemotron_dpo.training.settings import BatchSettings, Packing

    return BatchSettings(
        size=run.policy.train_global_batch_size,
        packing=Packing(row_tokens(run), run.policy.train_micro_batch_size),
        seed=run.dpo.seed,
        shuffle=run.data.shuffle,
    )


def _validation(run: RunConfig) -> ValidationSettings:
    from nemotron_dpo.training.settings import ValidationSettings

    return ValidationSettings(
        period=run.dpo.val_period,
        batches=run.dpo.val_batches,
        batch_size=run.dpo.val_global_batch_size,
        at_start=run.dpo.val_at_start,
        at_end=run.dpo.val_at_end,
    )


def remarks(run: RunConfig, data: Pairs, sets: Mapping[str, Pairs], made: LoopSettings) -> list[str]:
    """What `made`, the settings of `run`, come to on this data and on these processes, where that may surprise."""
    from nemotron_dpo.config import DpoConfig, ranking
    from nemotron_dpo.policy.parallel import job_size
    from nemotron_dpo.training import remarks

    schedule, keep, asked = run.policy.scheduler, run.checkpointing, run.cluster.gpus_per_node * run.cluster.num_nodes
    asked_for = (run.dpo.val_batches, run.dpo.val_global_batch_size)
    is_asked = asked_for != (DpoConfig.val_batches, DpoConfig.val_global_batch_size)
    sizes = {name: len(pairs) for name, pairs in sets.items()}
    lines = [
        *remarks.on_schedule(made.updates.learning_rates, run.dpo.max_num_steps, schedule.warmup_steps, schedule.milestones),
        *remarks.on_batches(made, len(data)),
        *remarks.on_validation(made, sizes, is_asked=is_asked),
        *remarks.on_overlap({name: pairs.pair_ids.num_found_in(data.pair_ids) for name, pairs in sets.items()}, sizes),
    ]
    if keep.enabled and not sets:
        lines += remarks.on_retention(made, keep.keep_top_k, keep.metric_name, ranking(run, sets))
    if asked not in (1, job_size()):
        lines.append(f"cluster.* asks for {asked} processes, and this is a run of {job_size()}: torchrun starts them")
    if run.data.validation and not sets:
        lines.append("data.validation is not read here: give --validation NAME=FILE of scored pairs")
    return lines


def save_by(run: RunConfig) -> float | None:
    """Seconds from the start of the process by which a checkpoint must have been begun."""
    from nemotron_dpo.config import seconds_until

    limit = run.checkpointing.checkpoint_must_save_by
    return None if limit is None else seconds_until(limit)


def checkpoint_dir(run: RunConfig, run_dir: Path) -> Path:
    """Where the checkpoints of a run in `run_dir` go."""
    return Path(run.checkpointing.checkpoint_dir or run_dir / "checkpoints")


def checkpoints(
    run: RunConfig, run_dir: Path, policy: ModelSource, identity: Identity | None, sets: Collection[str]
) -> Checkpoints | None:
    """What is saved and kept of a run that started from `policy` and validates `sets`; None where nothing is."""
    from nemotron_dpo.config import dump_run, ranking
    from nemotron_dpo.training.saving import Checkpoints

    keep = run.checkpointing
    if not keep.enabled:
        return None
    return Checkpoints(
        folder=checkpoint_dir(run, run_dir),
        config=dump_run(run),
        identity=identity if keep.save_optimizer else None,
        tokenizer=policy.tokenizer_folder if policy.tokenizer_folder.is_dir() else None,
        keep_top_k=keep.keep_top_k,
        metric_name=ranking(run, sets),
        higher_is_better=keep.higher_is_better,
        ranked_period=keep.save_period if keep.ft_save_period or keep.ft_keep_latest_k else None,
        keep_latest_k=keep.ft_keep_latest_k,
    )


def check_trackers(run: RunConfig) -> None:
    """Raise UserError, whose field is the key, where a tracker is asked for whose library is not installed."""
    logger = asdict(run.logger)
    if any(value for key, value in logger.items() if key.endswith("_enabled")):  # the sinks' imports take a while
        from nemotron_dpo.training.sinks import check_trackers

        check_trackers(logger)


def recorded(
    run: RunConfig, run_dir: Path, policy: ModelSource, inputs: Mapping[str, Path], done: int, say: Callable[[str], object]
) -> RecordedRun:
    """What the sinks of a run in `run_dir` are opened for, of which `done` steps were taken before.

    `inputs` are the streams of the run by what they are for.
    """
    from nemotron_dpo.config import redact, run_tree
    from nemotron_dpo.config.redact import hide_secrets
    from nemotron_dpo.training.lineage import lineage
    from nemotron_dpo.training.sinks import RecordedRun

    def say_hidden(line: str) -> None:  # libraries' errors quote addresses, and these may hold a password
        say(hide_secrets(line, ""))

    made_from = lineage(policy, inputs)
    return RecordedRun(run_dir, done, asdict(run.logger), redact(run_tree(run)), made_from, say_hidden, _facts(run))


def _facts(run: RunConfig) -> dict[str, Any]:
    """What run.json says of where and by what a run is computed."""
    from nemotron_dpo import versions
    from nemotron_dpo.config import redact_argv
    from nemotron_dpo.kernels.chosen import kernels
    from nemotron_dpo.policy import device, parallel

    return {
        "command": redact_argv(sys.argv),
        "versions": [f"Python {platform.python_version()}", *map(versions.called, ("nemotron-dpo", *versions.TRIED))],
        "processes": parallel.job_size(),
        "device": device.name(),
        "layout": asdict(layout(run)),
        "kernels": kernels().identity,
    }


def layout(run: RunConfig) -> Layout:
    """How the processes share the model and its tokens."""
    from nemotron_dpo.policy.layout import Layout

    megatron = run.policy.megatron_cfg
    return Layout(
        tensor=megatron.tensor_model_parallel_size,
        pipeline=megatron.pipeline_model_parallel_size,
        context=megatron.context_parallel_size,
        expert=megatron.expert_model_parallel_size,
        expert_tensor=megatron.expert_tensor_parallel_size,
        sequence=megatron.sequence_parallel,
        first_stage_layers=megatron.num_layers_in_first_pipeline_stage,
        last_stage_layers=megatron.num_layers_in_last_pipeline_stage,
    )


def row_tokens(run: RunConfig) -> int | None:
    """The most tokens of a packed row; None where rows are counted in pairs."""
    packing = run.policy.sequence_packing
    if not packing.enabled:
        return None
    return packing.train_mb_tokens or max(2048, 2 * run.policy.max_total_sequence_length)


def optimization(run: RunConfig) -> Optimization:
    """The optimizer's settings."""
    from nemotron_dpo.policy.trainable import Optimization

    megatron, optimizer = run.policy.megatron_cfg, run.policy.optimizer
    return Optimization(
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        betas=optimizer.betas,
        eps=optimizer.eps,
        max_grad_norm=run.policy.max_grad_norm,
        use_distributed_optimizer=megatron.use_distributed_optimizer,
        grad_reduce_in_fp32=megatron.grad_reduce_in_fp32,
    )


def lora(run: RunConfig) -> Lora | None:
    """The adapters to train in place of the policy's own weights."""
    from nemotron_dpo.policy.lora_targets import Lora

    peft = run.policy.megatron_cfg.peft
    if not peft.enabled:
        return None
    return Lora(peft.dim, peft.alpha, peft.target_modules, peft.exclude_modules, peft.lora_A_init_method, peft.lora_dtype)


def load_balancing(run: RunConfig) -> LoadBalancing | None:
    """The auxiliary loss of the routers of a policy with experts."""
    from nemotron_dpo.policy.load_balancing import LoadBalancing

    kind = run.policy.megatron_cfg.moe_router_load_balancing_type
    if kind in ("none", "sinkhorn"):  # the latter is refused where there are experts
        return None
    return LoadBalancing(kind, run.policy.megatron_cfg.moe_aux_loss_coeff)


def recompute(run: RunConfig) -> Recompute | None:
    """What is recomputed where activation_checkpointing is on: whole layers unless told otherwise, as in NeMo-RL."""
    from nemotron_dpo.policy.recompute import Recompute

    megatron, default = run.policy.megatron_cfg, Recompute()
    if not megatron.activation_checkpointing:
        return None
    return Recompute(
        granularity=megatron.recompute_granularity or default.granularity,
        method=megatron.recompute_method or default.method,
        num_layers=megatron.recompute_num_layers or default.num_layers,
        modules=default.modules if megatron.recompute_modules is None else megatron.recompute_modules,
    )

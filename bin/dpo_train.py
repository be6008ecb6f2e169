#!/usr/bin/env python3
"""Train a policy on scored preference pairs.

\b
    dpo-train scored.arrow --policy sft-checkpoint --run-dir run dpo.max_num_steps=100 policy.optimizer.lr=1e-6
    dpo-train scored.arrow --policy P --run-dir run --validation held_out.arrow -c tiny.yaml
    torchrun --nproc-per-node 8 --no-python dpo-train scored.arrow --policy P --run-dir run -c tiny.yaml
    dpo-train pairs.arrow --policy P --run-dir sft dpo.preference_loss_weight=0 dpo.sft_loss_weight=1

INPUT is scored_pairs from ref-logprobs, a path or "-" (it is spooled into the run folder first). With
dpo.preference_loss_weight=0 it may be tokenized_pairs: that is supervised fine-tuning on the chosen responses.
--validation may be repeated with names. Keys are NeMo-RL's; KEY.PATH=VALUE wins over the config.

The run folder receives metrics.jsonl (a record a step and a validation) and checkpoints/step_N; it must not hold the
checkpoints of an earlier run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nemotron_dpo import cli

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.model import PairPolicy
    from nemotron_dpo.policy.trainable import TrainablePolicy
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.loop import Settings

PROGRAM = "dpo-train"


@click.command(help=__doc__)
@click.argument("source", metavar="INPUT")
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option("--policy", required=True, metavar="ID_OR_DIR", help="Initial policy: HF id, HF folder or Megatron checkpoint.")
@click.option("--run-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of this run.")
@click.option("--validation", multiple=True, metavar="[NAME=]INPUT", help="Scored pairs to validate on [NAME: default].")
@click.option("-c", "--config", metavar="CONFIG", help="YAML file of the run's configuration.")
def command(
    source: str, overrides: tuple[str, ...], policy: str, run_dir: Path, validation: tuple[str, ...], config: str | None
) -> None:
    from nemotron_dpo.config import load_run
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.streams import spool

    run, warnings = load_run(config, overrides)
    for warning in warnings:
        cli.say(PROGRAM, f"warning: {warning}")
    found = resolve(policy)
    _refuse_used(_checkpoint_dir(run, run_dir))
    if source == "-":
        run_dir.mkdir(parents=True, exist_ok=True)
    data, reference_is_policy = _open(run, spool(source, run_dir / "input.arrow"), found)
    sets = {name: _open(run, Path(path), found)[0] for name, path in map(_named, validation)}
    settings = _settings(run, data, sets, reference_is_policy)
    _train(run, found, run_dir, data, sets, settings)


def _checkpoint_dir(run: RunConfig, run_dir: Path) -> Path:
    return Path(run.checkpointing.checkpoint_dir or run_dir / "checkpoints")


def _refuse_used(checkpoint_dir: Path) -> None:
    """An older run's checkpoints could pass for this one's, or push them out of keep_top_k."""
    from nemotron_dpo.errors import UserError

    if any(checkpoint_dir.glob("step_*")):
        raise UserError("holds the checkpoints of an earlier run", source=checkpoint_dir, remedy="remove it or name another")


def _named(argument: str) -> tuple[str, str]:
    name, found, path = argument.partition("=")
    return (name, path) if found else ("default", argument)


def _open(run: RunConfig, path: Path, policy: ModelSource) -> tuple[Pairs, bool]:
    """The pairs of one file, and whether `policy` itself scored them."""
    from nemotron_dpo.training.data import check_reference, open_pairs

    scored = run.dpo.preference_loss_weight != 0
    pairs, info = open_pairs(path, scored=scored, max_length=run.policy.max_total_sequence_length)
    if scored and not run.dpo.allow_reference_mismatch and cli.is_first_rank():
        check_reference(info, policy.weights_digest(), path)
    return pairs, scored and not run.dpo.allow_reference_mismatch


def _settings(run: RunConfig, data: Pairs, sets: dict[str, Pairs], gate: bool) -> Settings:
    """Plain arguments for the loop; everything that can be refused without a model is refused here."""
    from nemotron_dpo.objective.dpo import Objective
    from nemotron_dpo.policy.parallel import Layout, job_size
    from nemotron_dpo.training import loop
    from nemotron_dpo.training.batches import Packing

    megatron, dpo, policy = run.policy.megatron_cfg, run.dpo, run.policy
    replicas = Layout(megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size).data(job_size())
    steps = loop.num_steps(len(data), policy.train_global_batch_size, dpo.max_num_steps, dpo.max_num_epochs, replicas)
    loop.check_validation(sets, replicas)
    max_tokens = policy.sequence_packing.train_mb_tokens or max(2048, 2 * policy.max_total_sequence_length)
    return loop.Settings(
        objective=Objective(
            beta=dpo.reference_policy_kl_penalty,
            preference_weight=dpo.preference_loss_weight,
            sft_weight=dpo.sft_loss_weight,
            preference_average=dpo.preference_average_log_probs,
            sft_average=dpo.sft_average_log_probs,
        ),
        batch_size=policy.train_global_batch_size,
        learning_rates=_learning_rates(run, steps),
        weight_decay=policy.optimizer.weight_decay,
        packing=Packing(max_tokens if policy.sequence_packing.enabled else None, policy.train_micro_batch_size),
        seed=dpo.seed,
        shuffle=run.data.shuffle,
        val_period=dpo.val_period,
        val_batches=dpo.val_batches,
        val_batch_size=dpo.val_global_batch_size,
        val_at_start=dpo.val_at_start,
        val_at_end=dpo.val_at_end,
        save_period=run.checkpointing.save_period,
        save_by=_save_by(run.checkpointing.checkpoint_must_save_by),
        gate_precision=policy.precision if gate else None,
    )


def _learning_rates(run: RunConfig, steps: int) -> list[float]:
    from nemotron_dpo.training import schedule

    lr, rates = run.policy.optimizer.lr, run.policy.scheduler
    if rates.name == "torch":
        return schedule.from_torch(lr, steps, rates.schedulers, rates.milestones)
    return schedule.named(rates.name, lr, steps, warmup_steps=rates.warmup_steps, min_lr=rates.min_lr)


def _save_by(limit: str | None) -> float | None:
    """The time by which a checkpoint must have been begun, counted from the start of this process."""
    import psutil

    from nemotron_dpo.training.retention import seconds_until

    return None if limit is None else psutil.Process().create_time() + seconds_until(limit)


def _train(run: RunConfig, policy: ModelSource, run_dir: Path, data: Pairs, sets: dict[str, Pairs], settings: Settings) -> None:
    from nemotron_dpo.policy import parallel

    megatron, last = run.policy.megatron_cfg, len(settings.learning_rates)
    layout = parallel.Layout(megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size)
    run_dir.mkdir(parents=True, exist_ok=True)
    parallel.initialize(layout, run.dpo.seed)
    try:
        from nemotron_dpo.training import loop
        from nemotron_dpo.training.record import MetricsFile, TrainingInfo

        trainable, shape = _open_trainable(run, policy)
        info = TrainingInfo(len(data) // settings.batch_size, settings.batch_size)

        def save(step: int) -> None:
            if run.checkpointing.enabled:
                _save(run, policy, run_dir, trainable.model, shape, info.at(step))

        bar = cli.counter(unit="step", label="training", total=last)
        with MetricsFile(run_dir / "metrics.jsonl", enabled=cli.is_first_rank()) as metrics:
            for record in loop.train(trainable, data, sets, settings, save):
                metrics.write(record)
                info.add(record)
                bar(int("train/loss" in record))
        cli.say(PROGRAM, info.summary())
    finally:
        parallel.shut_down()


def _open_trainable(run: RunConfig, policy: ModelSource) -> tuple[TrainablePolicy, Architecture]:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy

    megatron, optimizer = run.policy.megatron_cfg, run.policy.optimizer
    length, recompute = run.policy.max_total_sequence_length, megatron.activation_checkpointing
    model, shape = open_policy(policy, run.policy.precision, max_length=length, recompute=recompute)
    optimization = Optimization(
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        betas=optimizer.betas,
        eps=optimizer.eps,
        max_grad_norm=run.policy.max_grad_norm,
        use_distributed_optimizer=megatron.use_distributed_optimizer,
        grad_reduce_in_fp32=megatron.grad_reduce_in_fp32,
    )
    return TrainablePolicy(model, optimization), shape


def _save(
    run: RunConfig, policy: ModelSource, run_dir: Path, model: PairPolicy, shape: Architecture, info: dict[str, float]
) -> None:
    from nemotron_dpo.checkpoint.policy import tokenizer_folder
    from nemotron_dpo.config import dump_run
    from nemotron_dpo.training.retention import prune
    from nemotron_dpo.training.saving import save_step

    keep, folder = run.checkpointing, _checkpoint_dir(run, run_dir)
    tokenizer = tokenizer_folder(policy)
    saved = save_step(folder, int(info["total_steps"]), model, shape, info=info, config=dump_run(run), tokenizer=tokenizer)
    cli.say(PROGRAM, f"saved {saved}")
    if cli.is_first_rank():
        for old in prune(folder, keep.keep_top_k, keep.metric_name, higher_is_better=keep.higher_is_better):
            cli.say(PROGRAM, f"removed {old}: not among the best {keep.keep_top_k} by {keep.metric_name}")


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()

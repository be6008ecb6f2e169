"""Check settings against each other: refuse a combination that nobody can mean, remark on one that few will mean.

Sees no data: what depends on the number of pairs is remarked on by training.remarks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from functools import partial

from nemotron_dpo.config.dpo import of_val_set
from nemotron_dpo.config.objective import objective_of, parts_of
from nemotron_dpo.config.objective_settings import objective_remarks
from nemotron_dpo.config.redact import redact
from nemotron_dpo.config.schema import CheckpointingConfig, RunConfig
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.metric_names import keeps_the_worst, selectors, selectors_text, unmeasured
from nemotron_dpo.wording import counted

# (dotted key, what its value comes to)
Remark = tuple[str, str]
_METRIC = "checkpointing.metric_name"


def check(run: RunConfig, sets: Collection[str]) -> list[Remark]:
    """Remarks on a `run` that validates the named `sets`. Raises UserError, whose field is the dotted key."""
    _check_objective(run)
    _check_schedule(run)
    _check_deadline(run.checkpointing)
    _check_sets(run, sets)
    _check_metric(run, sets)
    _check_export(run, sets)
    _check_address(run.logger.mlflow.tracking_uri)
    return list(_remarks(run, sets))


def seconds_until(text: str) -> float:
    """Seconds in "DD:HH:MM:SS". Raises UserError where it is not that."""
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})", text)
    if match is None:
        raise UserError(f"is {text!r} where DD:HH:MM:SS is due", field="checkpointing.checkpoint_must_save_by")
    days, hours, minutes, seconds = map(int, match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def _check_objective(run: RunConfig) -> None:
    if not parts_of(run.dpo):
        message = "is 0, and so is dpo.sft_loss_weight: nothing would be trained"
        raise UserError(message, field="dpo.preference_loss_weight")
    objective_of(run.dpo)


def _check_schedule(run: RunConfig) -> None:
    schedule, lr = run.policy.scheduler, run.policy.optimizer.lr
    if schedule.name in ("cosine", "linear") and schedule.min_lr > lr:
        raise UserError(f"is {schedule.min_lr:g}, above policy.optimizer.lr ({lr:g})", field="policy.scheduler.min_lr")
    milestones = schedule.milestones
    if any(later <= earlier for earlier, later in zip((0, *milestones), milestones, strict=False)):
        message = f"has milestones {list(milestones)}, and each must be a later step than the one before"
        raise UserError(message, field="policy.scheduler")


def _check_deadline(keep: CheckpointingConfig) -> None:
    if keep.checkpoint_must_save_by is None:
        return
    seconds_until(keep.checkpoint_must_save_by)
    if not keep.enabled:
        message = "would end the run, and with checkpointing.enabled=false nothing would be saved"
        raise UserError(message, field="checkpointing.checkpoint_must_save_by", remedy="set one of them otherwise")


def _check_sets(run: RunConfig, sets: Collection[str]) -> None:
    for name in run.dpo.val_sets:
        if name not in sets:
            there_are = f"there are {', '.join(sets)}" if sets else "there is none"
            raise UserError(f"is of no validation set: {there_are}", field=f"dpo.val_sets.{name}")
    if run.dpo.max_num_steps == 0 and not sets:
        message = "is 0, which validates and trains nothing, and there is no validation set: nothing would be done"
        raise UserError(message, field="dpo.max_num_steps", remedy="name one")


def _check_metric(run: RunConfig, sets: Collection[str]) -> None:
    name, objective = run.checkpointing.metric_name, objective_of(run.dpo)
    running = [one for one in sets if _validates(run, one)]
    if name is None or not run.checkpointing.enabled or run.dpo.max_num_steps == 0:
        return
    terms = objective.terms
    if name in unmeasured(sets, terms, compares=objective.needs.rejected):
        message = f"is {name!r}, which is 0 at every step with the objective of this run ({', '.join(terms)})"
        raise UserError(message, field=_METRIC, remedy="rank by the loss, which all have")
    has = partial(selectors, terms=terms, token_metrics=run.logger.token_metrics)
    if name in has(running):
        return
    if name in selectors(sets, terms, token_metrics=True) and name not in has(sets):
        message = f"is {name!r}, which is measured where it is asked for"
        raise UserError(message, field=_METRIC, remedy="set logger.token_metrics=true")
    if name in has(sets):
        if run.checkpointing.keep_top_k is None:  # no checkpoint is removed, so none is ranked
            return
        remedy = "set dpo.val_period or dpo.val_at_end, or metric_name=null to keep the newest"
        raise UserError(f"is {name!r}, of a validation that never runs while training", field=_METRIC, remedy=remedy)
    if name == CheckpointingConfig.metric_name:  # which nobody need have written
        return
    close = difflib.get_close_matches(name, has(running), n=1, cutoff=0.8)
    guess = f"did you mean {close[0]}? " if close else ""
    listed = selectors_text(running, terms, token_metrics=run.logger.token_metrics)
    remedy = f"{guess}{'there are' if running else 'without validation there are'} {listed}"
    raise UserError(f"is {name!r}, which nothing measures", field=_METRIC, remedy=remedy)


def _check_export(run: RunConfig, sets: Collection[str]) -> None:
    keep, field = run.checkpointing, "checkpointing.export_step"
    step = keep.export_step
    if step != "last" and step != "best" and not (isinstance(step, int) and step > 0):
        raise UserError(f"is {step!r}", field=field, remedy="give last, best or the number of a step")
    if step == "best" and keep.metric_name is None:
        raise UserError("is best, and checkpointing.metric_name is null: no step is the best", field=field, remedy="name it")
    if step == "best" and keep.enabled and ranking(run, [one for one in sets if _validates(run, one)]) is None:
        message = f"is best, and nothing measures {keep.metric_name}: no step is the best"
        raise UserError(message, field=field, remedy="validate, or name another checkpointing.metric_name")


def _check_address(uri: str | None) -> None:
    if redact(uri) != uri:
        message = "holds a password, which the run's records would hold too"
        raise UserError(message, field="logger.mlflow.tracking_uri", remedy="set MLFLOW_TRACKING_URI in the environment")


def router_refusal(run: RunConfig, own_coeff: float | None) -> UserError | None:
    """Why the `run` cannot be as it says where its model has experts; a model without any has no router.

    `own_coeff` is the model's own coefficient of the auxiliary loss, None where it does not say one.
    """
    megatron, section = run.policy.megatron_cfg, "policy.megatron_cfg"
    kind = megatron.moe_router_load_balancing_type
    if kind == "sinkhorn":
        message = "is sinkhorn, and the policy has experts: it picks others than the reference does"
        return UserError(message, field=f"{section}.moe_router_load_balancing_type", remedy="name a loss, or none")
    if kind != "none" and megatron.moe_aux_loss_coeff is None and own_coeff is None:
        message, remedy = "is not set, and the policy does not say its own", "0 trains without an auxiliary loss"
        return UserError(message, field=f"{section}.moe_aux_loss_coeff", remedy=remedy)
    return None


def ranking(run: RunConfig, sets: Collection[str]) -> str | None:
    """The metric by which checkpoints are best; None, the newest are, also where no set is there for the default one."""
    name = run.checkpointing.metric_name
    measured = selectors(sets, objective_of(run.dpo).terms, token_metrics=run.logger.token_metrics)
    return name if name in measured else None


def _validates(run: RunConfig, name: str) -> bool:
    """Whether the validation set `name` is looked at after a step."""
    cadence = of_val_set(run.dpo, name)
    return cadence["val_period"] > 0 or cadence["val_at_end"]


def _remarks(run: RunConfig, sets: Collection[str]) -> Iterator[Remark]:
    dpo, keep, schedule = run.dpo, run.checkpointing, run.policy.scheduler
    yield from objective_remarks(dpo)
    if schedule.warmup_steps >= dpo.max_num_steps > 0:
        steps = counted(dpo.max_num_steps, "step")
        text = f"is {schedule.warmup_steps}, and the run has no more than {steps}: all of it is warm-up"
        yield "policy.scheduler.warmup_steps", text
    idle = [one for one in sets if not (_validates(run, one) or of_val_set(dpo, one)["val_at_start"])]
    if idle and dpo.max_num_steps:
        what = "nothing" if len(idle) == len(sets) else f"{', '.join(idle)}"
        text = f"is {dpo.val_period}, with neither val_at_start nor val_at_end: {what} is ever validated"
        yield "dpo.val_period", text if what == "nothing" else text.replace("is ever", "is never")
    if keep.enabled and keep.ft_save_period and not keep.save_optimizer:
        text = f"is {keep.ft_save_period}, and without save_optimizer no run goes on from these steps"
        yield "checkpointing.ft_save_period", text
    if keep.enabled and keep.metric_name and keep.keep_top_k is not None and dpo.max_num_steps:
        yield from _ranking_remarks(run, keep.metric_name, sets)


def _ranking_remarks(run: RunConfig, name: str, sets: Collection[str]) -> Iterator[Remark]:
    keep = run.checkpointing
    if sets and ranking(run, sets) is None:
        yield _METRIC, f"is {name}, and the validation sets are {', '.join(sets)}: the newest checkpoints count as best"
    elif keeps_the_worst(name, higher_is_better=keep.higher_is_better):
        how = "higher" if keep.higher_is_better else "lower"
        yield "checkpointing.higher_is_better", f"takes {how} values of {name} for better: it keeps the worst checkpoints"

"""The learning rate of every step, known before the run: a named curve after a warm-up, or a chain of torch schedulers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from nemotron_dpo.errors import UserError

# They take functions or other schedulers, or watch a metric: no config can say that.
_NOT_BUILT = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau", "LRScheduler")


def rates(
    name: str,
    lr: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    warmup_init: float | None = None,
    decay_steps: int | None = None,
    schedulers: Sequence[tuple[str, dict[str, Any]]] = (),
    milestones: Sequence[int] = (),
) -> list[float]:
    """One rate a step: `from_torch` where `name` is "torch", `from_megatron` with a `warmup_init`, else `named`."""
    if name == "torch":
        return from_torch(lr, total_steps, schedulers, milestones)
    if warmup_init is not None:
        return from_megatron(
            name, lr, total_steps, warmup_steps=warmup_steps, init=warmup_init, min_lr=min_lr, decay_steps=decay_steps
        )
    return named(name, lr, total_steps, warmup_steps=warmup_steps, min_lr=min_lr)


def named(name: str, lr: float, total_steps: int, *, warmup_steps: int = 0, min_lr: float = 0.0) -> list[float]:
    """Linear warm-up (step 1 gets lr / warmup_steps), then "constant", or a "cosine"/"linear" decay from lr towards min_lr.

    The decay is that of transformers' schedules: it starts at lr in the first step after the warm-up and would be at min_lr
    one step after the last, so that every step moves the policy.
    """
    return [_named_at(name, lr, step, total_steps, warmup_steps, min_lr) for step in range(1, total_steps + 1)]


def from_megatron(
    name: str, lr: float, total_steps: int, *, warmup_steps: int, init: float, min_lr: float, decay_steps: int | None
) -> list[float]:
    """The rates of megatron-core's OptimizerParamScheduler: step 1 of a warm-up has `init`, the one after it has `lr`.

    A decay starts there, and reaches min_lr `decay_steps` steps after the first (None: after `total_steps`).
    """
    end = decay_steps or total_steps
    if name != "constant" and end <= warmup_steps:
        message = f"is {warmup_steps}, and the decay ends at step {end}: nothing is left of it"
        raise UserError(message, field="policy.scheduler.warmup_steps", remedy="make the warm-up shorter")
    return [_megatron_at(name, lr, done, warmup_steps, init, min_lr, end) for done in range(total_steps)]


def other_rates(before: Sequence[float], now: Sequence[float], done: int) -> str | None:
    """What a run has lived through whose first `done` steps had the rates `before`, where `now` has others; None where not.

    A decay that follows the length of the run does that to one that is made longer.
    """
    if done == 0 or list(before[:done]) == list(now[:done]):
        return None
    old, new = (f"step {done}: {rates[done - 1]:.3g}" for rates in (before, now))
    return (
        f"the learning rate follows the length of the run: so far it was that of {len(before)} steps ({old}), "
        f"from here on it is that of {len(now)} steps ({new}): a run of {len(now)} steps from its first would end elsewhere"
    )


def _megatron_at(name: str, lr: float, done: int, warmup: int, init: float, min_lr: float, end: int) -> float:
    """The rate once `done` steps were taken."""
    if warmup > 0 and done <= warmup:
        return init + (lr - init) * done / warmup
    if name == "constant":
        return lr
    if done > end:
        return min_lr
    part = (done - warmup) / (end - warmup)
    return min_lr + (lr - min_lr) * (0.5 * (1 + math.cos(math.pi * part)) if name == "cosine" else 1 - part)


def from_torch(
    lr: float, total_steps: int, schedulers: Sequence[tuple[str, dict[str, Any]]], milestones: Sequence[int]
) -> list[float]:
    """The rates that `torch.optim.lr_scheduler` classes give one after another, each taking over at its milestone.

    Raises UserError for an unknown class, arguments it does not take, and rates that are negative or not finite.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    names = ", ".join(name for name, _ in schedulers)
    try:
        chain = [_scheduler(name, optimizer, arguments) for name, arguments in schedulers]
        whole = torch.optim.lr_scheduler.SequentialLR(optimizer, chain, list(milestones)) if len(chain) > 1 else chain[0]
        rates = [_next_rate(optimizer, whole) for _ in range(total_steps)]
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{names}: {error}", field="policy.scheduler") from None
    for step, rate in enumerate(rates, 1):
        if not (math.isfinite(rate) and rate >= 0):
            raise UserError(f"{names}: the learning rate of step {step} is {rate}", field="policy.scheduler")
    return rates


def _next_rate(optimizer: torch.optim.Optimizer, scheduler: Any) -> float:
    rate = float(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
    return rate


def _named_at(name: str, lr: float, step: int, total: int, warmup: int, min_lr: float) -> float:
    if step <= warmup:
        return lr * step / warmup
    if name == "constant":
        return lr
    done = (step - warmup - 1) / (total - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1 - done
    return min_lr + (lr - min_lr) * left


def _scheduler(name: str, optimizer: torch.optim.Optimizer, arguments: dict[str, Any]) -> Any:
    base = torch.optim.lr_scheduler.LRScheduler
    kind = getattr(torch.optim.lr_scheduler, name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError(f"torch.optim.lr_scheduler has no {name}", field="policy.scheduler")
    if name in _NOT_BUILT or name.startswith("_"):
        raise UserError(f"{name} is not built", field="policy.scheduler", remedy="name schedulers that take numbers")
    if name in ("CyclicLR", "OneCycleLR") and arguments.get("cycle_momentum", True) is not False:
        remedy = "give it cycle_momentum: false"
        raise UserError(f"{name} would also change AdamW's betas, which is not built", field="policy.scheduler", remedy=remedy)
    return kind(optimizer, **arguments)

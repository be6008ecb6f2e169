"""The learning rate of every step, known before the run: a named shape after a warm-up, or a chain of torch schedulers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from nemotron_dpo.errors import UserError


def rates(
    name: str,
    lr: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    schedulers: Sequence[tuple[str, dict[str, Any]]] = (),
    milestones: Sequence[int] = (),
) -> list[float]:
    """One rate a step: `from_torch` where `name` is "torch", else `named`."""
    if name == "torch":
        return from_torch(lr, total_steps, schedulers, milestones)
    return named(name, lr, total_steps, warmup_steps=warmup_steps, min_lr=min_lr)


def named(shape: str, lr: float, total_steps: int, *, warmup_steps: int = 0, min_lr: float = 0.0) -> list[float]:
    """Linear warm-up (step 1 gets lr / warmup_steps), then "constant", or "cosine"/"linear" decay to min_lr at the end."""
    return [_named_at(shape, lr, step, total_steps, warmup_steps, min_lr) for step in range(1, total_steps + 1)]


def from_torch(
    lr: float, total_steps: int, schedulers: Sequence[tuple[str, dict[str, Any]]], milestones: Sequence[int]
) -> list[float]:
    """The rates that `torch.optim.lr_scheduler` classes give one after another, each taking over at its milestone.

    Raises UserError for an unknown class or arguments it does not take.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    chain = [_scheduler(name, optimizer, arguments) for name, arguments in schedulers]
    whole = torch.optim.lr_scheduler.SequentialLR(optimizer, chain, list(milestones)) if len(chain) > 1 else chain[0]
    rates = []
    for _ in range(total_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        whole.step()
    return rates


def _named_at(shape: str, lr: float, step: int, total: int, warmup: int, min_lr: float) -> float:
    if step <= warmup:
        return lr * step / warmup
    if shape == "constant":
        return lr
    done = (step - warmup) / max(1, total - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1 - done
    return min_lr + (lr - min_lr) * left


def _scheduler(name: str, optimizer: torch.optim.Optimizer, arguments: dict[str, Any]) -> Any:
    kind = getattr(torch.optim.lr_scheduler, name, None)
    if kind is None:
        raise UserError(f"torch.optim.lr_scheduler has no {name}", field="policy.scheduler")
    try:
        return kind(optimizer, **arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}", field="policy.scheduler") from None

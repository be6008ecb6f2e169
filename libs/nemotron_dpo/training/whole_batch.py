"""Objectives whose loss of a pair depends on the other pairs of the global batch, exactly on any number of ranks.

A pass without gradients comes first. It gives every rank the summed log-probs of all pairs; these give the loss and its slope
by each of them. The pass with gradients then needs no pair but its own: its loss is linear, a sum over pairs.
Legend: R response tokens of a packed row, B pairs of the global batch, P of them in a micro batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.protocol import Needs, Objective, PairLosses
from nemotron_dpo.policy.trainable import Loss, TrainablePolicy
from nemotron_dpo.training.batches import GlobalBatch, PairBatch
from nemotron_dpo.training.pair_inputs import NO_VALUES, Columns, columns, known, needed, of_columns, of_global_batch

_FROM_LOGPS = (".logp", ".log_ratio")  # the columns that have a gradient


@dataclass(frozen=True)
class Sloped:
    """The losses of a global batch, and the slopes of their sum by columns of its pairs, float32 [B] each."""

    losses: PairLosses
    slopes: Columns


def whole(policy: TrainablePolicy, batch: GlobalBatch, token_values: frozenset[str], needs: Needs) -> LossInputs:
    """All pairs of the global batch under the policy as it is."""
    return of_global_batch(policy.evaluate(batch.mine, _report(needs), token_values), batch, token_values, needs)


def first_micro_batch(
    policy: TrainablePolicy, batch: GlobalBatch, token_values: frozenset[str], needs: Needs
) -> LossInputs | None:
    """This rank's first micro batch under the policy as it is; None before the last pipeline stage."""
    return next(iter(policy.evaluate(batch.mine[:1], _report(needs), token_values)), None)


def _report(needs: Needs) -> Loss:
    """The loss of a pass that is only to report its pairs."""

    def loss(batch: PairBatch, logps_R: Tensor, values: Mapping[str, Tensor] = NO_VALUES) -> tuple[Tensor, LossInputs]:
        return logps_R.sum(), known(batch, logps_R, values, needs)

    return loss


def sloped(objective: Objective, pairs: LossInputs) -> Sloped:
    """The loss of `pairs`, which are a global batch, and its slopes by autograd."""
    given = columns(needed(pairs, objective.needs))
    leaves = {name: values.detach().requires_grad_() for name, values in given.items() if name.endswith(_FROM_LOGPS)}
    with torch.enable_grad():
        losses = objective.losses(of_columns({**given, **leaves}))
        found = torch.autograd.grad(losses.loss.sum(), list(leaves.values()), allow_unused=True)
    return Sloped(losses, {name: slope for name, slope in zip(leaves, found, strict=True) if slope is not None})


def linear(slopes: Columns, whole: GlobalBatch, needs: Needs) -> Loss:
    """The loss that has these slopes: its gradient is that of the objective, its value means nothing."""

    def loss(batch: PairBatch, logps_R: Tensor) -> tuple[Tensor, None]:
        own, here_P = columns(known(batch, logps_R, NO_VALUES, needs)), whole.places(batch)
        return torch.stack([slope_B[here_P] @ own[name] for name, slope_B in slopes.items()]).sum(), None

    return loss


def not_finite(pairs: LossInputs, losses: PairLosses) -> list[int]:
    """The places of the pairs to blame: log-probs that are not finite may make the losses of all other pairs so too."""
    own = torch.stack([side.logp for side in (pairs.chosen, pairs.rejected)]).isfinite().all(0)
    finite = own if not own.all() else losses.loss.detach().isfinite()
    return torch.nonzero(~finite).flatten().tolist()


def with_moved(pairs: LossInputs, moved: LossInputs, here_P: Tensor) -> LossInputs:
    """`pairs`, but those at the places `here_P` are `moved`."""
    others = columns(moved)
    return of_columns({name: values.index_copy(0, here_P, others[name].detach()) for name, values in columns(pairs).items()})


def groups(pairs: LossInputs, size: int) -> Iterator[LossInputs]:
    """The pairs in groups of `size`, in their order; the last may be smaller."""
    every = columns(pairs)
    for start in range(0, len(pairs.chosen.logp), size):
        yield of_columns({name: values[start : start + size] for name, values in every.items()})

"""The gradients of a global batch, and what is measured of it: in one pass where the loss of each pair is its own, else in two.

Every rank calls what is here, and all get the same numbers. Legend: P pairs of a micro batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.protocol import Objective, PairLosses
from nemotron_dpo.objective.weighted_sum import after
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training import pair_values, whole_batch
from nemotron_dpo.training.batches import GlobalBatch
from nemotron_dpo.training.objective_loss import PairReport, lines_not_finite, loss_of, means_over_job, rewards_of
from nemotron_dpo.training.pair_inputs import needed, of_global_batch, unread_log_ratios
from nemotron_dpo.training.pair_values import PairValues
from nemotron_dpo.training.settings import LoopSettings


@dataclass(frozen=True)
class Gradients:
    """What a step knows once the policy has the gradients of its global batch.

    values: the metrics of the whole job. pairs: what was measured of each of its pairs. lines_not_finite: the input lines of
    all pairs whose loss is not finite. objective: as it is after the batch. rewards_2P: of this rank's first micro batch; empty
    before the last pipeline stage, None where responses are not compared. rewards: computes them anew, by the weights as they
    are then.
    """

    values: dict[str, float]
    pairs: PairValues
    lines_not_finite: list[int]
    objective: Objective
    rewards_2P: Tensor | None
    rewards: Callable[[], Tensor | None]


def gradients(
    policy: TrainablePolicy, data: Pairs, batch: GlobalBatch, objective: Objective, settings: LoopSettings
) -> Gradients:
    """Give `policy` the gradients of the global batch. `objective` is that of the step, where it has a state."""
    return (_in_two_passes if objective.needs.whole_batch else _in_one_pass)(policy, data, batch, objective, settings)


def measured(
    policy: TrainablePolicy, data: Pairs, batch: GlobalBatch, objective: Objective, settings: LoopSettings, group_size: int
) -> tuple[dict[str, float], PairValues]:
    """The metrics of the pairs of `batch`, and those of each of them, without gradients and without moving a state.

    Where the loss of a pair depends on others, these are those of its group: `group_size` pairs in a row.
    """
    if not objective.needs.whole_batch:
        reports = policy.evaluate(batch.mine, loss_of(objective), settings.token_values)
        means = means_over_job(reports, objective, is_scored=batch.is_scored, token_metrics=settings.token_metrics)
        return means, _each(reports, data, batch, objective)
    pairs, total = whole_batch.whole(policy, batch, settings.token_values, objective.needs), dict[str, float]()
    each: list[Tensor] = []
    for group in whole_batch.groups(pairs, group_size):
        losses = objective.losses(needed(group, objective.needs))
        each.append(pair_values.measured_of(group, losses))
        total = {name: total.get(name, 0.0) + value for name, value in _sums(losses, group, objective).items()}
    names = pair_values.names(objective, is_scored=batch.is_scored)
    means = metrics.means(total, objective, token_metrics=settings.token_metrics)
    return means, pair_values.of_batch(torch.cat(each, dim=1), names, data, batch)


def _each(reports: Sequence[PairReport], data: Pairs, batch: GlobalBatch, objective: Objective) -> PairValues:
    names = pair_values.names(objective, is_scored=batch.is_scored)
    return pair_values.over_job([report.values_CP for report in reports], names, data, batch)


def _in_one_pass(
    policy: TrainablePolicy, data: Pairs, batch: GlobalBatch, objective: Objective, settings: LoopSettings
) -> Gradients:
    reports = policy.accumulate(batch.mine, loss_of(objective), settings.token_values)

    def rewards() -> Tensor | None:
        return _first_rewards(policy.evaluate(batch.mine[:1], loss_of(objective), objective.needs.token_values))

    return Gradients(
        means_over_job(reports, objective, is_scored=batch.is_scored, token_metrics=settings.token_metrics),
        _each(reports, data, batch, objective),
        lines_not_finite(data, batch, reports),
        _after_pass(reports, batch, objective, settings),
        _first_rewards(reports),
        rewards,
    )


def _after_pass(reports: Sequence[PairReport], batch: GlobalBatch, objective: Objective, settings: LoopSettings) -> Objective:
    if not objective.needs.state:
        return objective
    parts = [report.pairs for report in reports if report.pairs]
    return after(objective, needed(of_global_batch(parts, batch, settings.token_values, objective.needs), objective.needs))


def _first_rewards(reports: Sequence[PairReport]) -> Tensor | None:
    return reports[0].rewards_2P if reports else torch.zeros(2, 0)


def _in_two_passes(
    policy: TrainablePolicy, data: Pairs, batch: GlobalBatch, objective: Objective, settings: LoopSettings
) -> Gradients:
    needs, here_P = objective.needs, batch.places(batch.mine[0])
    pairs = whole_batch.whole(policy, batch, settings.token_values, needs)
    objective = after(objective, needed(pairs, needs))
    found = whole_batch.sloped(objective, pairs)
    policy.accumulate(batch.mine, whole_batch.linear(found.slopes, batch, needs))
    names = pair_values.names(objective, is_scored=batch.is_scored)

    def rewards() -> Tensor | None:
        moved = whole_batch.first_micro_batch(policy, batch, settings.token_values, needs)
        if moved is None:
            return torch.zeros(2, 0)
        return _at(here_P, rewards_of(objective.losses(needed(whole_batch.with_moved(pairs, moved, here_P), needs))))

    return Gradients(
        metrics.means(_sums(found.losses, pairs, objective), objective, token_metrics=settings.token_metrics),
        pair_values.of_batch(pair_values.measured_of(pairs, found.losses), names, data, batch),
        [int(data.source_lines[batch.rows[place]]) for place in whole_batch.not_finite(pairs, found.losses)],
        objective,
        _at(here_P if parallel.is_last_stage() else here_P[:0], rewards_of(found.losses)),
        rewards,
    )


def _sums(losses: PairLosses, pairs: LossInputs, objective: Objective) -> dict[str, float]:
    sums = metrics.sums(losses, pairs, unread_log_ratios(pairs, objective.needs))
    return {name: value.item() for name, value in sums.items()}


def _at(here_P: Tensor, rewards_2B: Tensor | None) -> Tensor | None:
    return None if rewards_2B is None else rewards_2B[:, here_P]

"""An objective over packed rows: the loss that the policy differentiates, and what each micro batch reports of its pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.protocol import Needs, Objective, PairLosses
from nemotron_dpo.policy import parallel, token_values
from nemotron_dpo.policy.trainable import Loss
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training import pair_values
from nemotron_dpo.training.batches import GlobalBatch, PairBatch
from nemotron_dpo.training.pair_inputs import NO_VALUES, detached, known, needed, unread_log_ratios

_GIVEN = Needs(True, True, token_values.NAMES, row_rewards=True, whole_batch=True, state=True, tails=True, ordered_rewards=True)


@dataclass(frozen=True)
class PairReport:
    """Of the P pairs of one micro batch: metrics.sums, whether each loss is finite, and both rewards [2, P] where it has them.

    values_CP: what `pair_values.names` names of each pair.

    pairs: what is known of them, where the objective has a state, which moves by it. Read late: reading makes the program wait
    for a GPU.
    """

    sums: dict[str, Tensor]
    finite_P: Tensor
    rewards_2P: Tensor | None
    values_CP: Tensor
    pairs: LossInputs | None


def check_needs(objective: Objective) -> None:
    """Raise UserError where the objective needs what training does not give: it would be computed from something else."""
    unknown = sorted(objective.needs.token_values - token_values.NAMES)
    if unknown:
        known = ", ".join(sorted(token_values.NAMES))
        raise UserError(f"the objective needs {', '.join(unknown)} of each token, and training gives {known}")
    if objective.needs | _GIVEN != _GIVEN:
        raise UserError(f"the objective needs more than training gives: {objective.needs}")


def loss_of(objective: Objective) -> Loss:
    """The sum of the objective over the pairs of a packed row, and the report of these pairs."""
    needs = objective.needs

    def loss(batch: PairBatch, logps_R: Tensor, values: Mapping[str, Tensor] = NO_VALUES) -> tuple[Tensor, PairReport]:
        pairs = known(batch, logps_R, values, needs)
        losses = objective.losses(needed(pairs, needs))
        sums, finite_P = metrics.sums(losses, pairs, unread_log_ratios(pairs, needs)), losses.loss.detach().isfinite()
        values_CP, kept = pair_values.measured_of(pairs, losses), detached(pairs) if needs.state else None
        return losses.loss.sum(), PairReport(sums, finite_P, rewards_of(losses), values_CP, kept)

    return loss


def rewards_of(losses: PairLosses) -> Tensor | None:
    """Both rewards [2, P], where the objective compares responses."""
    rewards = losses.rewards
    return None if rewards is None else torch.stack((rewards.chosen, rewards.rejected)).detach()


def means_over_job(
    reports: Sequence[PairReport], objective: Objective, *, is_scored: bool, token_metrics: bool = False
) -> dict[str, float]:
    """The metrics of all micro batches of all ranks; ranks before the last pipeline stage have no reports of their own.

    `is_scored`: the pairs have reference log-probs.

    With `token_metrics`, for which the loss must have been given TOKEN_VALUES, TOKEN_METRICS are among them.
    """
    log_ratios = is_scored and not objective.needs.reference
    names = metrics.summed_names(objective, log_ratios=log_ratios, token_metrics=token_metrics)
    mine = torch.zeros(len(names), dtype=torch.float64)
    if parallel.is_last_stage():
        mine = torch.stack([torch.stack([report.sums[name] for name in names]) for report in reports]).sum(0)
    total = dict(zip(names, parallel.sum_over_job(mine).tolist(), strict=True))
    return metrics.means(total, objective, token_metrics=token_metrics)


def lines_not_finite(pairs: Pairs, batch: GlobalBatch, reports: Sequence[PairReport]) -> list[int]:
    """The input lines of all pairs, on any rank, whose loss is not finite; every rank calls it."""
    measured = zip(batch.mine, reports, strict=True) if parallel.is_last_stage() else ()
    mine = [pair for some, one in measured for pair, fine in zip(some.pairs, one.finite_P.tolist(), strict=True) if not fine]
    everyone = {pair for part in parallel.gather(mine) for pair in part}
    return sorted(int(pairs.source_lines[pair]) for pair in everyone)

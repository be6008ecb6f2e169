"""An objective over packed rows: the loss that the policy differentiates, and what each micro batch reports of its pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.inputs import LossInputs, loss_inputs
from nemotron_dpo.objective.protocol import Needs, Objective
from nemotron_dpo.policy import parallel, token_values
from nemotron_dpo.policy.trainable import Loss
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training.batches import PairBatch

_GIVEN = Needs(reference=True, rejected=True, token_values=token_values.NAMES, row_rewards=True)
_NONE: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class PairReport:
    """Of the P pairs of one micro batch: metrics.sums, whether each loss is finite, and both rewards [2, P] where it has them.

    Read late: reading makes the program wait for a GPU.
    """

    sums: dict[str, Tensor]
    finite_P: Tensor
    rewards_2P: Tensor | None


def check_needs(objective: Objective) -> None:
    """Raise UserError where the objective needs what training does not give: it would be computed from something else."""
    if objective.needs | _GIVEN != _GIVEN:
        raise UserError(f"the objective needs more than training gives: {objective.needs}")


def loss_of(objective: Objective) -> Loss:
    """The sum of the objective over the pairs of a packed row, and the report of these pairs."""

    def loss(batch: PairBatch, logps_R: Tensor, values: Mapping[str, Tensor] = _NONE) -> tuple[Tensor, PairReport]:
        ref_logps_R = batch.ref_logps_R if objective.needs.reference else None
        pairs = loss_inputs(logps_R, ref_logps_R, batch.row.sums_of_responses, values)
        if objective.needs.row_rewards:
            pairs = _with_row_rewards(pairs, batch.row_rewards_P2)
        losses = objective.losses(pairs)
        rewards = losses.rewards
        rewards_2P = None if rewards is None else torch.stack((rewards.chosen, rewards.rejected)).detach()
        return losses.loss.sum(), PairReport(metrics.sums(losses, pairs), losses.loss.detach().isfinite(), rewards_2P)

    return loss


def _with_row_rewards(pairs: LossInputs, rewards_P2: Tensor | None) -> LossInputs:
    if rewards_P2 is None:  # of a micro batch without pairs, for data without rewards were refused when they were opened
        rewards_P2 = pairs.chosen.logp.detach().new_zeros((len(pairs.chosen.logp), 2))
    sides = zip((pairs.chosen, pairs.rejected), rewards_P2.unbind(1), strict=True)
    return LossInputs(*(replace(responses, given_row_reward=rewards_P) for responses, rewards_P in sides))


def means_over_job(reports: Sequence[PairReport], objective: Objective, *, token_metrics: bool = False) -> dict[str, float]:
    """The metrics of all micro batches of all ranks; ranks before the last pipeline stage have no reports of their own.

    With `token_metrics`, for which the loss must have been given TOKEN_VALUES, TOKEN_METRICS are among them.
    """
    names = metrics.summed_names(objective, token_metrics=token_metrics)
    mine = torch.zeros(len(names), dtype=torch.float64)
    if parallel.is_last_stage():
        mine = torch.stack([torch.stack([report.sums[name] for name in names]) for report in reports]).sum(0)
    total = dict(zip(names, parallel.sum_over_job(mine).tolist(), strict=True))
    return metrics.means(total, objective, token_metrics=token_metrics)


def lines_not_finite(pairs: Pairs, batches: Sequence[PairBatch], reports: Sequence[PairReport]) -> list[int]:
    """The input lines of all pairs, on any rank, whose loss is not finite; every rank calls it."""
    measured = zip(batches, reports, strict=True) if parallel.is_last_stage() else ()
    mine = [pair for batch, one in measured for pair, fine in zip(batch.pairs, one.finite_P.tolist(), strict=True) if not fine]
    everyone = {pair for part in parallel.gather(mine) for pair in part}
    return sorted(int(pairs.source_lines[pair]) for pair in everyone)

"""What is measured on each packed row, and what of it becomes a number of the whole job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.dpo import Objective, pair_losses, responses
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.trainable import Loss
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training.batches import PairBatch


@dataclass(frozen=True)
class RowMeasures:
    """Of one packed row: metrics.SUMS, whether the loss of each pair is finite, and chosen and rejected rewards.

    They stay tensors until the whole batch is done: reading one earlier would wait for the GPU.
    """

    sums: Tensor
    finite_P: Tensor
    rewards_2P: Tensor


def row_loss(objective: Objective) -> Loss:
    """The loss of a packed row, and what is measured on it."""

    def loss(batch: PairBatch, logps_R: Tensor) -> tuple[Tensor, RowMeasures]:
        sides = responses(logps_R, batch.ref_logps_R, batch.row.response_R, batch.row.num_pairs)
        losses = pair_losses(objective, sides)
        rewards_2P = torch.stack((losses.chosen_reward, losses.rejected_reward)).detach()
        return losses.loss.sum(), RowMeasures(metrics.sums(losses, sides), torch.isfinite(losses.loss.detach()), rewards_2P)

    return loss


def means_over_job(rows: Sequence[RowMeasures], objective: Objective) -> dict[str, float]:
    """The metrics of the global batch or validation set of which `rows` are this rank's part.

    Every rank calls it; those before the last pipeline stage have no rows and add nothing.
    """
    if parallel.is_last_stage():
        sums = torch.stack([row.sums for row in rows]).sum(0)
    else:
        sums = torch.zeros(len(metrics.SUMS), dtype=torch.float64)
    return metrics.means(parallel.sum_over_job(sums), objective)


def lines_not_finite(pairs: Pairs, batches: Sequence[PairBatch], rows: Sequence[RowMeasures]) -> list[int]:
    """The input lines of all pairs, on any rank, whose loss is not finite; every rank calls it."""
    measured = zip(batches, rows, strict=True) if parallel.is_last_stage() else ()
    mine = [pair for batch, row in measured for pair, fine in zip(batch.pairs, row.finite_P.tolist(), strict=True) if not fine]
    everyone = {pair for part in parallel.gather(mine) for pair in part}
    return sorted(int(pairs.source_lines[pair]) for pair in everyone)

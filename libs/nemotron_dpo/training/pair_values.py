"""What a step or a validation measured of each of its pairs, for whoever asks which pairs did it.

Legend: P pairs of a micro batch, B pairs of the global batch, C values of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemotron_dpo.objective.formulas import PREFERENCE
from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.metric_names import MARGIN
from nemotron_dpo.objective.protocol import Objective, PairLosses
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import device
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training.batches import GlobalBatch
from nemotron_dpo.training.pair_inputs import KL

_LOGPS, _LOG_RATIOS, _KLS = (tuple(f"{side}_{name}" for side in ("chosen", "rejected")) for name in ("logp", "log_ratio", "kl"))
_MARGIN, _LOSS = "margin", "loss"


@dataclass(frozen=True)
class PairValues:
    """The pairs `rows` of `data`, in the order of their batch, and what was measured of them, float32 [B] each.

    by_name: `chosen_logp` and `rejected_logp`, sums over the response's tokens under the policy. Where the pairs are scored
    `chosen_log_ratio` and `rejected_log_ratio`, the same less the reference's, and `chosen_kl` and `rejected_kl`, means over
    tokens of half the square of their log-ratio. Where the objective compares responses `margin`, by how much it rewards the
    chosen one more, and `loss`, the pair's preference loss: without its weight, or the whole loss of an objective that has no
    term of that name.
    """

    data: Pairs
    rows: Sequence[int]
    by_name: Mapping[str, np.ndarray]

    @property
    def num_tokens(self) -> dict[str, np.ndarray]:
        """Tokens of the chosen and of the rejected response, int64 [B]."""
        rows = np.asarray(self.rows, dtype=np.int64)
        return {"chosen": self.data.chosen.lengths[rows], "rejected": self.data.rejected.lengths[rows]}

    def metrics(self) -> dict[str, float]:
        """Means over the pairs, and over the tokens of their responses where there are scores."""
        mean = {name: float(values.mean(dtype=np.float64)) for name, values in self.by_name.items()}
        found = {f"logps_{side}_mean": mean[f"{side}_logp"] for side in self.num_tokens}
        found |= {MARGIN: mean[_MARGIN]} if _MARGIN in mean else {}
        if set(_LOG_RATIOS) <= set(mean):
            of_sums, of_means = (self._per_token(name, weigh=weigh) for name, weigh in (("log_ratio", False), ("kl", True)))
            found |= {f"log_ratio_{side}_per_token": value for side, value in of_sums.items()}
            found |= {f"kl_{side}": value for side, value in of_means.items()}
        return found

    def _per_token(self, name: str, *, weigh: bool) -> dict[str, float]:
        """The mean over all tokens of each side, of sums over a response's, or of means over them, which it `weigh`s."""
        values = {side: self.by_name[f"{side}_{name}"].astype(np.float64) for side in self.num_tokens}
        return {
            side: float((values[side] * (count if weigh else 1)).sum() / count.sum()) for side, count in self.num_tokens.items()
        }


def names(objective: Objective, *, is_scored: bool) -> tuple[str, ...]:
    """The names of what is measured of each pair."""
    return (*_LOGPS, *((*_LOG_RATIOS, *_KLS) if is_scored else ()), *((_MARGIN, _LOSS) if objective.needs.rejected else ()))


def measured_of(pairs: LossInputs, losses: PairLosses) -> Tensor:
    """What `names` names, without gradient, float32 [C, P]."""
    sides, rewards = (pairs.chosen, pairs.rejected), losses.rewards
    found = [side.logp for side in sides]
    found += [side.given_log_ratio for side in sides if side.given_log_ratio is not None]
    found += [side.token_means[KL] for side in sides if KL in side.token_means]
    found += [] if rewards is None else [rewards.chosen - rewards.rejected, losses.terms.get(PREFERENCE, losses.loss)]
    return torch.stack([values.detach() for values in found])


def over_job(parts: Sequence[Tensor], names: Sequence[str], data: Pairs, batch: GlobalBatch) -> PairValues:
    """Those of all ranks in the order of the global batch, the same on every process; every rank calls it.

    `parts` are the values [C, P] of each of this rank's micro batches; ranks before the last pipeline stage have none.
    """
    mine_CP, here_P = torch.zeros(len(names), 0, device=device()), torch.zeros(0, dtype=torch.long, device=device())
    if parts:
        mine_CP, here_P = torch.cat(list(parts), dim=1), torch.cat([batch.places(one) for one in batch.mine])
    return of_batch(parallel.placed_over_job(mine_CP, here_P, len(batch.rows)), names, data, batch)


def of_batch(values_CB: Tensor, names: Sequence[str], data: Pairs, batch: GlobalBatch) -> PairValues:
    """Those of a global batch, of which this process has the values of all pairs."""
    return PairValues(data, batch.rows, dict(zip(names, values_CB.float().cpu().numpy(), strict=True)))

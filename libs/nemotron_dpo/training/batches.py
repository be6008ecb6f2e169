"""From rows of a pairs file to this rank's micro batches. Legend: R response tokens of a packed row, P pairs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.cost import share_of_replica
from nemotron_dpo.policy.device import device, to_device
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.rows import PackedRow, join_responses, pack_row
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training.settings import Packing


@dataclass(frozen=True)
class PairBatch:
    """A packed row, its reference log-probs float32 [R] (None where the pairs are not scored), and its rows in the file.

    `row_rewards_P2` are the rewards of chosen and rejected response that the data bring along, float32 [P, 2]; None where no
    pair of the row has any.
    """

    row: PackedRow
    ref_logps_R: Tensor | None
    pairs: tuple[int, ...]
    row_rewards_P2: Tensor | None = None


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of the file that are one global batch, in its order, and this rank's micro batches of it, one or more."""

    rows: Sequence[int]
    mine: Sequence[PairBatch]

    @functools.cached_property
    def place(self) -> Mapping[int, int]:
        """Where in the global batch a row of the file is."""
        found = {row: place for place, row in enumerate(self.rows)}
        assert len(found) == len(self.rows), "a global batch has a row twice"
        return found

    @property
    def is_scored(self) -> bool:
        """Whether its pairs have reference log-probs."""
        return self.mine[0].ref_logps_R is not None

    def places(self, batch: PairBatch) -> Tensor:
        """The places in the global batch of the P pairs of `batch`, int64 [P]."""
        return torch.tensor([self.place[pair] for pair in batch.pairs], dtype=torch.long, device=device())


def share(policy: PairPolicy, pairs: Pairs, rows: Sequence[int]) -> list[int]:
    """The rows of a global batch that this data-parallel rank computes. Every rank's share costs about the same FLOPs."""
    lengths = (column.lengths[np.asarray(rows)] for column in (pairs.prompt, pairs.chosen, pairs.rejected))
    return [rows[i] for i in share_of_replica(policy.architecture, *lengths)]


def micro_batches(pairs: Pairs, rows: Sequence[int], packing: Packing) -> list[PairBatch]:
    """Pack the given rows of `pairs`. Every rank calls it: where ranks must run equally many micro batches, some are empty."""
    bins = packing.bins(pairs, rows)
    bins += [[]] * (parallel.num_micro_batches(len(bins)) - len(bins))
    return [_batch(pairs, members) for members in bins]


def _batch(pairs: Pairs, members: list[int]) -> PairBatch:
    row = pack_row(*pairs.columns(members), parallel.row_cut())
    rewards_P2 = np.stack([pairs.chosen_reward[members], pairs.rejected_reward[members]], axis=1)
    row_rewards_P2 = None if np.isnan(rewards_P2).all() else to_device(rewards_P2)
    return PairBatch(row, _ref_logps(pairs, members), tuple(members), row_rewards_P2)


def _ref_logps(pairs: Pairs, members: list[int]) -> Tensor | None:
    if pairs.ref_chosen is None or pairs.ref_rejected is None:
        return None
    if not members:
        return torch.zeros(0, device=device())
    return to_device(join_responses([pairs.ref_chosen[i] for i in members], [pairs.ref_rejected[i] for i in members]))

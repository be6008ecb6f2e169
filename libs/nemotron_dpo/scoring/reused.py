"""Scores in earlier outputs of ref-logprobs, found by pair_id without holding more than their ids' order in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shard import rows_of


@dataclass(frozen=True)
class EarlierScores:
    """The scored pairs of one stream; `order` sorts them by the first half of their ids, `ids` uint64 [N, 2]."""

    pairs: Pairs
    ids: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> EarlierScores:
        ids = pairs.pair_ids.to_numpy()
        return cls(pairs, ids, np.argsort(ids[:, 0], kind="stable"))

    def fill(self, pairs: Pairs, scores: WindowScores, known: np.ndarray) -> None:
        """Put what is here of `pairs` into `scores` where it is not `known` (bool [P]) yet, and mark it as known."""
        wanted = np.flatnonzero(~known)
        at = rows_of(self.ids, pairs.pair_ids.to_numpy()[wanted], self.order)
        for row, place in zip(wanted[at >= 0].tolist(), at[at >= 0].tolist(), strict=True):
            known[row] = scores.put(row, *self._record(place))

    def __iter__(self) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
        for row, pair_id in enumerate(self.pairs.pair_ids):
            yield (pair_id, *self._record(row))

    def _record(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.pairs.ref_chosen is not None
        assert self.pairs.ref_rejected is not None
        return self.pairs.ref_chosen[row], self.pairs.ref_rejected[row]

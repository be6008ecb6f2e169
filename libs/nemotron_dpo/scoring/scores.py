"""The scores of a window of pairs as arrays: of each pair one log-prob a token of the chosen and of the rejected response.

Legend: P pairs of the window, T tokens of one side of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import POLICY_SCORES, SCORED_PAIRS, TOKENIZED_PAIRS


@dataclass(frozen=True)
class WindowScores:
    """float32 [T] a side, pair after pair; row i of a side lies between ends[i] and ends[i + 1]. NaN is not known yet."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_ends: np.ndarray
    rejected_ends: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> WindowScores:
        """Room for the scores of `pairs`, none of which is known."""
        ends = [np.concatenate([[0], np.cumsum(side.lengths)]) for side in (pairs.chosen, pairs.rejected)]
        return cls(*(np.full(end[-1], np.nan, np.float32) for end in ends), *ends)

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of both sides of one pair."""
        return (
            self.chosen[self.chosen_ends[row] : self.chosen_ends[row + 1]],
            self.rejected[self.rejected_ends[row] : self.rejected_ends[row + 1]],
        )

    def put(self, row: int, chosen: np.ndarray, rejected: np.ndarray) -> bool:
        """Store the scores of one pair; False, and nothing is stored, where they are not as many as its tokens."""
        own = self.row(row)
        if len(own[0]) != len(chosen) or len(own[1]) != len(rejected):
            return False
        own[0][:], own[1][:] = chosen, rejected
        return True

    def columns(self) -> list[pa.Array]:
        """The two reference columns of `scored_pairs`."""
        sides = ((self.chosen, self.chosen_ends), (self.rejected, self.rejected_ends))
        return [
            pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values, pa.float32())) for values, ends in sides
        ]


def in_schema(name: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of `scored_pairs` as those of the schema `name`: `policy_scores` has the same columns under other names."""
    return pa.RecordBatch.from_arrays(batch.columns, schema=POLICY_SCORES) if name == "policy_scores" else batch


def scored_batch(window: pa.RecordBatch, scores: WindowScores) -> pa.RecordBatch:
    """`window` as rows of `scored_pairs`."""
    columns = [*(window.column(name) for name in TOKENIZED_PAIRS.names), *scores.columns()]
    return pa.RecordBatch.from_arrays(columns, schema=SCORED_PAIRS)

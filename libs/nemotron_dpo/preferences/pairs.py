"""Tokenized pairs in memory as flat numpy arrays over the Arrow buffers, zero-copy where the file is mapped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ragged:
    """A list column: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, column: pa.Array) -> Ragged:
        """A view of a list array, sliced arrays included."""
        return cls(column.values.to_numpy(), column.offsets.to_numpy())  # type: ignore[attr-defined]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Pairs:
    """Columns of `tokenized_pairs` or, with the two reference columns, `scored_pairs`."""

    pair_ids: list[bytes]
    source_lines: np.ndarray
    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    ref_chosen: Ragged | None = None
    ref_rejected: Ragged | None = None

    @classmethod
    def of(cls, table: pa.Table | pa.RecordBatch) -> Pairs:
        """The pairs of a table or batch."""
        if isinstance(table, pa.Table):
            batches = table.combine_chunks().to_batches()
            table = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
        scored = "ref_chosen_logps" in table.schema.names
        return cls(
            pair_ids=table.column("pair_id").to_pylist(),
            source_lines=table.column("source_line").to_numpy(),
            prompt=Ragged.of(table.column("prompt_ids")),
            chosen=Ragged.of(table.column("chosen_ids")),
            rejected=Ragged.of(table.column("rejected_ids")),
            ref_chosen=Ragged.of(table.column("ref_chosen_logps")) if scored else None,
            ref_rejected=Ragged.of(table.column("ref_rejected_logps")) if scored else None,
        )

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each packed pair: prompt + chosen + rejected."""
        return self.prompt.lengths + self.chosen.lengths + self.rejected.lengths

    @property
    def sequence_lengths(self) -> np.ndarray:
        """Tokens of each pair's longer sequence: prompt + response."""
        return self.prompt.lengths + np.maximum(self.chosen.lengths, self.rejected.lengths)

    def columns(self, rows: Iterable[int]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """(prompts, chosen, rejected) token ids of the given rows."""
        wanted = list(rows)
        return [self.prompt[i] for i in wanted], [self.chosen[i] for i in wanted], [self.rejected[i] for i in wanted]

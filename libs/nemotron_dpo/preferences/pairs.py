"""Tokenized pairs as numpy views of the Arrow buffers of each record batch; no copy is made where the file is mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ragged:
    """A list column as the (values, offsets) parts that store it: row i of a part is values[offsets[i]:offsets[i + 1]].

    `firsts` holds the row number at which each part begins. `lengths` (int64) holds the number of values in every row.
    """

    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    firsts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> Ragged:
        """A view of a list array or of the chunks of one, sliced arrays included."""
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = tuple((chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks)  # type: ignore[attr-defined] - a list array, which pyarrow's stubs do not know
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for _, offsets in parts)])
        return cls(parts, np.cumsum([0, *map(len, chunks)])[:-1], lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        part = int(np.searchsorted(self.firsts, row, side="right")) - 1
        (values, offsets), i = self.parts[part], row - self.firsts[part]
        return values[offsets[i] : offsets[i + 1]]

    def by_part(self) -> Iterator[np.ndarray]:
        """Yield one array a part, without a copy: the values of all the part's rows, one row after another."""
        for values, offsets in self.parts:
            yield values[offsets[0] : offsets[-1]]


@dataclass(frozen=True)
class IdColumn:
    """The pair_ids, 16 bytes each, left in Arrow's buffers; an id becomes a Python object only when it is read."""

    column: pa.ChunkedArray

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> IdColumn:
        """A view of an array or of the chunks of one, sliced arrays included."""
        return cls(column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]))

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> bytes:
        return self.column[row].as_py()

    def num_found_in(self, others: IdColumn) -> int:
        """How many of these ids are among the others."""
        import pyarrow.compute as pc

        return pc.sum(pc.is_in(self.column, value_set=others.column.combine_chunks())).as_py() or 0  # type: ignore[attr-defined] - pyarrow's stubs do not know the functions it generates

    def to_numpy(self) -> np.ndarray:
        """The bytes of all ids as uint64 [P, 2]; a view where they lie in one piece."""
        chunks = self.column.chunks
        parts = [np.frombuffer(c.buffers()[1] or b"", "<u8").reshape(-1, 2)[c.offset : c.offset + len(c)] for c in chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((0, 2), "<u8"), *parts])

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.column.chunks:
            for start in range(0, len(chunk), _IDS_AT_ONCE):
                yield from chunk.slice(start, _IDS_AT_ONCE).to_pylist()


@dataclass(frozen=True)
class NameColumn:
    """Names of few different values, left in Arrow's buffers. Where a row has none its name is empty."""

    column: pa.ChunkedArray

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> NameColumn:
        """A view of an array of texts or of the chunks of one."""
        return cls(column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]))

    def __getitem__(self, row: int) -> str:
        return self.column[row].as_py() or ""

    def to_numpy(self) -> np.ndarray:
        """All names, object [P]."""
        return self.column.fill_null("").to_numpy(zero_copy_only=False)

    def counts(self) -> dict[str, int]:
        """The number of rows of each name, in the order in which the names first occur."""
        named = self.column.fill_null("").value_counts()
        return dict(zip(named.field("values").to_pylist(), named.field("counts").to_pylist(), strict=True))


_IDS_AT_ONCE = 4096  # how many ids an iteration converts to Python objects at once, to bound its memory


@dataclass(frozen=True)
class Pairs:
    """Columns of `tokenized_pairs` or, with the two columns of scores, `scored_pairs` (a reference's) or `policy_scores`.

    `source` names the data set or file of each pair, `source_file` the file of a data set of several. `chosen_reward` and
    `rejected_reward` (float32 [P]) are what the data say of its responses, NaN where they say nothing. `check_unchanged`
    raises UserError where somebody wrote to the file that they lie in.
    """

    pair_ids: IdColumn
    source_lines: np.ndarray
    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    source: NameColumn
    chosen_reward: np.ndarray
    rejected_reward: np.ndarray
    source_file: NameColumn
    ref_chosen: Ragged | None = None
    ref_rejected: Ragged | None = None
    check_unchanged: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, table: pa.Table | pa.RecordBatch) -> Pairs:
        """The pairs of a table or a record batch; it has reference log-probs where the table has their columns."""
        names = set(table.schema.names)
        scores = next((prefix for prefix in ("ref_", "") if f"{prefix}chosen_logps" in names), None)
        return cls(
            pair_ids=IdColumn.of(table.column("pair_id")),
            source_lines=table.column("source_line").to_numpy(),
            prompt=Ragged.of(table.column("prompt_ids")),
            chosen=Ragged.of(table.column("chosen_ids")),
            rejected=Ragged.of(table.column("rejected_ids")),
            source=NameColumn.of(table.column("source")),
            chosen_reward=table.column("chosen_reward").to_numpy(zero_copy_only=False),
            rejected_reward=table.column("rejected_reward").to_numpy(zero_copy_only=False),
            source_file=NameColumn.of(table.column("source_file")),
            ref_chosen=None if scores is None else Ragged.of(table.column(f"{scores}chosen_logps")),
            ref_rejected=None if scores is None else Ragged.of(table.column(f"{scores}rejected_logps")),
        )

    def __len__(self) -> int:
        return len(self.pair_ids)

    def place(self, row: int) -> str:
        """Where the user finds the row: its line in the data set or file that it comes from."""
        return f"line {self.source_lines[row]} of {self.file(row) or 'the input'}"

    def file(self, row: int) -> str:
        """The file in which `source_lines` counts the row, or its data set, if that is one file; empty if unknown."""
        return self.source_file[row] or self.source[row]

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each packed pair, int64 [P]: prompt + chosen + rejected."""
        return self.prompt.lengths + self.chosen.lengths + self.rejected.lengths

    def num_tokens_of(self, rows: Sequence[int]) -> np.ndarray:
        """The `num_tokens` of the given rows alone, in their order, without computing those of all other rows."""
        wanted = np.asarray(rows, dtype=np.int64)
        return self.prompt.lengths[wanted] + self.chosen.lengths[wanted] + self.rejected.lengths[wanted]

    @property
    def sequence_lengths(self) -> np.ndarray:
        """Tokens of each pair's longer sequence, int64 [P]: prompt + the longer response."""
        return self.prompt.lengths + np.maximum(self.chosen.lengths, self.rejected.lengths)

    def columns(self, rows: Iterable[int]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """(prompts, chosen, rejected) token ids of the given rows."""
        wanted = list(rows)
        return [self.prompt[i] for i in wanted], [self.chosen[i] for i in wanted], [self.rejected[i] for i in wanted]

"""Pairs as views of the record batches they are stored in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import Ragged

LISTS = [[[1, 2], [], [3]], [], [[4, 5, 6]], [[7], [8, 9]]]


def test_rows_are_found_in_the_batch_that_holds_them_and_not_copied() -> None:
    chunks = [pa.array(lists, pa.list_(pa.int32())) for lists in LISTS]
    chunks[2] = pa.array([[0, 0], *LISTS[2], [0]], pa.list_(pa.int32())).slice(1, 1)  # offsets that do not begin at 0
    ragged = Ragged.of(pa.chunked_array(chunks))
    rows = [row for lists in LISTS for row in lists]
    assert [ragged[i].tolist() for i in range(len(rows))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert [values.tolist() for values in ragged.by_part()] == [[x for row in lists for x in row] for lists in LISTS]
    assert all(np.shares_memory(ragged[i], chunks[part].values.to_numpy()) for i, part in ((0, 0), (3, 2), (5, 3)))


def test_a_table_without_batches_has_no_rows() -> None:
    ragged = Ragged.of(pa.chunked_array([], pa.list_(pa.int32())))
    assert len(ragged.lengths) == 0
    assert not [*ragged.by_part()]

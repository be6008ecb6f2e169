"""Pairs as views of the record batches they are stored in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import IdColumn, NameColumn, Pairs, Ragged
from nemotron_dpo.streams import SCORED_PAIRS

NO_NAMES, NO_REWARDS = NameColumn.of(pa.nulls(3, pa.string())), np.full(3, np.nan, np.float32)
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


def test_ids_are_bytes_where_arrow_has_them() -> None:
    """Also ids that end in zeros, over chunks of which one is a slice, and more of them than become objects at once."""
    ids = [row.to_bytes(16, "little") for row in range(10_000)]
    chunks = [pa.array(part, pa.binary(16)) for part in (ids[:1], [], ids[1:9000], [ids[0], *ids[9000:], ids[0]])]
    chunks[3] = chunks[3].slice(1, 1000)
    column = IdColumn.of(pa.chunked_array(chunks))
    assert len(column) == 10_000
    assert list(column) == ids
    assert [column[row] for row in (0, 1, 8999, 9000, 9999)] == [ids[row] for row in (0, 1, 8999, 9000, 9999)]
    assert column == IdColumn.of(pa.array(ids, pa.binary(16)))
    assert column != IdColumn.of(pa.array(ids[::-1], pa.binary(16)))
    assert list(IdColumn.of(pa.chunked_array([], pa.binary(16)))) == []


def test_ids_that_two_columns_share():
    """Of a b a c, three are among a c d, in whatever chunks."""
    a, b, c, d = (bytes([number]) * 16 for number in range(4))
    kind = pa.binary(16)
    ours = IdColumn.of(pa.chunked_array([pa.array([a, b], kind), pa.array([a, c], kind)]))
    theirs = IdColumn.of(pa.chunked_array([pa.array([a], kind), pa.array([c, d], kind)]))
    assert ours.num_found_in(theirs) == 3
    assert theirs.num_found_in(ours) == 2
    assert IdColumn.of(pa.chunked_array([], kind)).num_found_in(theirs) == 0


def test_tokens_of_some_rows_are_those_of_all() -> None:
    lists = Ragged.of(pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int32())))
    others = Ragged.of(pa.array([[1], [2, 3, 4], []], pa.list_(pa.int32())))
    pairs = Pairs(
        IdColumn.of(pa.array([b"0" * 16] * 3, pa.binary(16))),
        np.arange(3),
        lists,
        others,
        lists,
        NO_NAMES,
        NO_REWARDS,
        NO_REWARDS,
        NO_NAMES,
    )
    assert pairs.num_tokens.tolist() == [5, 5, 6]
    assert pairs.num_tokens_of([2, 0, 2]).tolist() == [6, 5, 6]
    assert pairs.num_tokens_of([]).tolist() == []


def test_names_are_counted_over_chunks_and_a_missing_one_is_empty() -> None:
    chunks = [pa.array(part, pa.string()) for part in (["b", "a", None], [], ["a", "", "c"])]
    names = NameColumn.of(pa.chunked_array([*chunks[:2], chunks[2].slice(0, 2)]))
    assert [names[row] for row in range(5)] == ["b", "a", "", "a", ""]
    assert names.counts() == {"b": 1, "a": 2, "": 2}
    assert names.to_numpy().tolist() == ["b", "a", "", "a", ""]
    assert NameColumn.of(pa.chunked_array([], pa.string())).counts() == {}


def test_rewards_are_nan_where_there_are_none() -> None:
    rows = [{**dict.fromkeys(SCORED_PAIRS.names), "chosen_reward": chosen} for chosen in (0.1, None, -2)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in SCORED_PAIRS]))
    pairs = Pairs.of(pa.concat_tables([table.slice(1), table.slice(0, 1)]))
    assert pairs.chosen_reward.dtype == pairs.rejected_reward.dtype == np.float32
    assert pairs.chosen_reward.tolist()[1:] == [-2, np.float32(0.1)]
    assert np.isnan([pairs.chosen_reward[0], *pairs.rejected_reward]).all()

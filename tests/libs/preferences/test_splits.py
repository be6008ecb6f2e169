"""Parts of splits, with the bounds that `datasets` documents (its rounding: to the closest row, halves to the even one)."""

from __future__ import annotations

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.splits import parse_split, sliced

# (what is asked for, rows there are, first row and the one after the last)
BOUNDS = [
    ("train", 20, (0, 20)),
    ("train[:10]", 20, (0, 10)),
    ("train[10:20]", 15, (10, 15)),
    ("train[-5:]", 20, (15, 20)),
    ("train[-30:-5]", 20, (0, 15)),
    ("train[:1%]", 250, (0, 2)),  # 2.5 rows
    ("train[:1%]", 350, (0, 4)),  # 3.5 rows
    ("train[:1%]", 20, (0, 0)),
    ("train[33%:66%]", 10, (3, 7)),
    ("train[-10%:]", 20, (18, 20)),
    ("train_prefs[:-50%]", 20, (0, 10)),
]
BAD = ["", "train[", "train[5]", "train[1:2:3]", "train[:10%(closest)]", "train[10:50%]", "train+", "a b", "train[:101%]"]


def test_bounds_are_those_of_datasets() -> None:
    for text, num_rows, expected in BOUNDS:
        (part,) = parse_split(text)
        start, stop = part.bounds(lambda num_rows=num_rows: num_rows)
        assert (start, num_rows if stop is None else min(stop, num_rows)) == expected, text


def test_rows_are_counted_only_where_the_bounds_need_it() -> None:
    (part,) = parse_split("train[3:5]")
    assert part.bounds(lambda: pytest.fail("counted")) == (3, 5)


def test_parts_are_joined_and_nonsense_is_refused() -> None:
    assert [(part.name, part.start, part.stop) for part in parse_split("train[:2] + test")] == [
        ("train", None, 2),
        ("test", None, None),
    ]
    for text in BAD:
        with pytest.raises(UserError):
            parse_split(text)


def test_rows_keep_their_numbers_and_empty_lines_do_not_count() -> None:
    chunks = [Chunk("a", 1, [b"0\n", b"\n", b"1\n"]), Chunk("a", 4, [b" \n", b"2\n"]), Chunk("b", 1, [{"x": 3}, {"x": 4}])]
    found = [(chunk.source, chunk.first_line, chunk.rows) for chunk in sliced(iter(chunks), 1, 4)]
    assert found == [("a", 3, [b"1\n"]), ("a", 5, [b"2\n"]), ("b", 1, [{"x": 3}])]
    assert list(sliced(iter(chunks), 2, 2)) == []

"""Set the row format of each chunk, either as the caller names it or as recognised from the first rows of its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.row_formats import Keys, recognise
from nemotron_dpo.preferences.tokenize_chunk import parse

AUTO = "auto"
_FIRST_ROWS = 10


def with_row_formats(chunks: Iterator[Chunk], row_format: str, keys: Keys, max_line_bytes: int) -> Iterator[Chunk]:
    """`chunks` with their format set to `row_format`; "auto" takes the format of the first readable row of each source.

    "auto" takes the formats without a prompt column (conversation, transcript) for "pair", because later rows of the same file
    may have one. The reader of "pair" handles both.
    """
    source, found = None, row_format
    for chunk in chunks:
        if row_format == AUTO and chunk.source != source:
            source, found = chunk.source, _first_format(chunk, keys, max_line_bytes)
        yield replace(chunk, row_format=found)


def _first_format(chunk: Chunk, keys: Keys, max_line_bytes: int) -> str:
    for row in chunk.rows[:_FIRST_ROWS]:
        try:
            row_format = recognise(parse(row, max_line_bytes), keys)
            return "pair" if row_format in ("conversation", "transcript") else row_format
        except RowProblem:
            continue
    return "pair"

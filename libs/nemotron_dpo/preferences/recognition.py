"""Give each chunk the shape of its file's rows, recognised from the file's first rows or forced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.shapes import Keys, recognise
from nemotron_dpo.preferences.tokenize_chunk import parse

AUTO = "auto"
_FIRST_ROWS = 10


def with_shapes(chunks: Iterator[Chunk], shape: str, keys: Keys, max_line_bytes: int) -> Iterator[Chunk]:
    """`chunks` with their shape set: `shape`, or what the first readable row of each source looks like for "auto".

    Rows that bring their prompt along count as pairs then: some of the file's rows may have a prompt of their own.
    """
    source, found = None, shape
    for chunk in chunks:
        if shape == AUTO and chunk.source != source:
            source, found = chunk.source, _first_shape(chunk, keys, max_line_bytes)
        yield replace(chunk, shape=found)


def _first_shape(chunk: Chunk, keys: Keys, max_line_bytes: int) -> str:
    for row in chunk.rows[:_FIRST_ROWS]:
        try:
            shape = recognise(parse(row, max_line_bytes), keys)
            return "pair" if shape in ("conversation", "transcript") else shape
        except RowProblem:
            continue
    return "pair"

"""A stream of pairs in windows: enough pairs at a time to fill the rows of every data-parallel replica, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.preferences.checks import check_kinds, check_vocabulary
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import Reader, open_reader

ROWS_OF_A_REPLICA, FEWEST_ROWS = 4, 16  # of a window; few replicas get more each, as more pairs fill their rows better


def window_tokens(max_tokens: int, replicas: int) -> int:
    """Tokens of a window whose packed rows have `max_tokens`.

    Every process holds the window, so this bounds its memory: 64 replicas with rows of 16,384 tokens have windows of 4.2
    million tokens, 17 MB of token ids and as much again of scores.
    """
    return max(FEWEST_ROWS, ROWS_OF_A_REPLICA * replicas) * max_tokens


def windows(batches: Iterable[pa.RecordBatch], num_tokens: int) -> Iterator[pa.RecordBatch]:
    """Regroup record batches into windows of at least `num_tokens` tokens, in order; the last one has what is left."""
    waiting: list[pa.RecordBatch] = []
    tokens = 0
    for batch in batches:
        for piece in _slices(batch, num_tokens):
            waiting.append(piece)
            tokens += int(Pairs.of(piece).num_tokens.sum())
            if tokens >= num_tokens:
                yield pa.concat_batches(waiting)
                waiting, tokens = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def check_fits(pairs: Pairs, vocab_size: int, architecture: Architecture, source: str) -> None:
    """Raise UserError where the policy cannot read `pairs`.

    It cannot read ids beyond its vocabulary, nor a sequence (a prompt and one response) of more tokens than it has positions,
    nor two whose positions turn otherwise.
    """
    check_vocabulary(pairs, vocab_size, source)
    check_kinds([pairs], architecture.short_length, source)
    longest, max_length = pairs.sequence_lengths.max(), architecture.max_position_embeddings
    if longest > max_length:
        what = f"has a sequence of {longest} tokens; the policy has {max_length} positions"
        raise UserError(what, source=source, remedy="tokenize with --max-length")


def check_kinds_of_file(reader: Reader, architecture: Architecture) -> None:
    """The same of the kinds of texts in a whole file, on the first rank: what is late in it is found before all is scored."""
    if architecture.short_length is None or parallel.rank() or not Path(reader.source).is_file():
        return
    with open_reader(reader.source, reader.info.schema) as again:
        check_kinds((Pairs.of(batch) for batch in again), architecture.short_length, reader.source)


def _slices(batch: pa.RecordBatch, num_tokens: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most `num_tokens` tokens; a longer pair is a piece of its own."""
    ends = np.cumsum(Pairs.of(batch).num_tokens)
    start = 0
    while start < batch.num_rows:
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + num_tokens, side="right")))
        yield batch.slice(start, stop - start)
        start = stop

"""A stream of pairs in windows: enough pairs at a time to fill the rows of every data-parallel replica, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import check_vocabulary
from nemotron_dpo.preferences.pairs import Pairs

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


def check_fits(pairs: Pairs, vocab_size: int, max_length: int, source: str) -> None:
    """Raise UserError where the policy cannot read `pairs`.

    It cannot read ids beyond its vocabulary, nor a sequence (a prompt and one response) of more than `max_length` tokens.
    """
    check_vocabulary(pairs, vocab_size, source)
    longest = pairs.sequence_lengths.max()
    if longest > max_length:
        what = f"has a sequence of {longest} tokens; the policy has {max_length} positions"
        raise UserError(what, source=source, remedy="tokenize with --max-length")


def check_turns_alike(pairs: Pairs, original: int, source: str) -> None:
    """Raise UserError where a pair has a text of up to `original` tokens and a longer one, which longrope turns otherwise."""
    long = np.stack([pairs.prompt.lengths + side.lengths > original for side in (pairs.chosen, pairs.rejected)])
    rows = np.flatnonzero(long[0] != long[1])
    if not rows.size:
        return
    what = f"in {rows.size} of {len(pairs)} pairs (the first from line {pairs.source_lines[rows[0]]}) one response ends within"
    what += f" {original} tokens and the other behind them, for which longrope turns the one prompt in two ways"
    raise UserError(what, source=source, remedy=f"leave such pairs out, or tokenize with --max-length {original}")


def _slices(batch: pa.RecordBatch, num_tokens: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most `num_tokens` tokens; a longer pair is a piece of its own."""
    ends = np.cumsum(Pairs.of(batch).num_tokens)
    start = 0
    while start < batch.num_rows:
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + num_tokens, side="right")))
        yield batch.slice(start, stop - start)
        start = stop

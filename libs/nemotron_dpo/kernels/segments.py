"""Where whole pairs lie in a packed row, and which tokens each of its tokens may see.

Both responses of a pair see its one prompt and themselves, never each other; no pair sees another.

Legend: S packed tokens, L those of them that this context-parallel rank holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Segment:
    """Where one pair lies in the packed row: token offsets, `end` exclusive. Padding is a prompt without responses."""

    prompt: int
    chosen: int
    rejected: int
    end: int


class PackedTokens(Protocol):
    """A packed row, told from others by identity: so what is prepared for it serves all layers of a pass.

    segments: its pairs in order, then the padding where there is any. chunks: the slices of S that this rank holds, in the
    order of L.
    """

    @property
    def segments(self) -> tuple[Segment, ...]: ...

    @property
    def chunks(self) -> tuple[slice, ...]: ...


def causal_runs(row: PackedTokens, window: int | None = None) -> Iterator[tuple[int, slice, tuple[slice, ...]]]:
    """Each run of held tokens: where it begins in L, its tokens in S, and its keys in S, of which the last are its own.

    Keys that are outside the `window` of all its tokens are left out.
    """
    held = 0
    for chunk in row.chunks:
        for pair in row.segments:
            for tokens, keys in causal_parts(pair, chunk):
                count = tokens.stop - tokens.start
                yield held, tokens, keys if window is None else last_of(keys, count + window - 1)
                held += count


def causal_parts(pair: Segment, chunk: slice) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """What of a pair is in `chunk`: prompt and chosen response behind one another, the rejected one after the prompt."""
    for first, last in ((pair.prompt, pair.rejected), (pair.rejected, pair.end)):
        start, stop = max(first, chunk.start), min(last, chunk.stop)
        if start < stop:
            before = () if first == pair.prompt else (slice(pair.prompt, pair.chosen),)
            yield slice(start, stop), (*before, slice(first, stop))


def last_of(parts: tuple[slice, ...], count: int) -> tuple[slice, ...]:
    """The last `count` places of `parts`, all where there are no more."""
    kept: tuple[slice, ...] = ()
    for part in reversed(parts):
        if count > 0:
            kept = (slice(max(part.start, part.stop - count), part.stop), *kept)
        count -= part.stop - part.start
    return kept


def first_of(parts: tuple[slice, ...], count: int) -> tuple[slice, ...]:
    """The first `count` places of `parts`, all where there are no more."""
    kept: tuple[slice, ...] = ()
    for part in parts:
        if count > 0:
            kept = (*kept, slice(part.start, min(part.stop, part.start + count)))
        count -= part.stop - part.start
    return kept


def num_places(parts: tuple[slice, ...]) -> int:
    """How many places all of `parts` have."""
    return sum(part.stop - part.start for part in parts)

"""Group whole pairs into micro batches by token count: a pair is never cut, so its one prompt serves both responses."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of `lengths` (tokens per pair) in bins of at most `max_tokens`, by best fit of decreasing lengths.

    A pair longer than `max_tokens` gets a bin of its own. Every index appears once; the result depends on `lengths` alone.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [b for b, left in enumerate(room) if left >= lengths[index]]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            bins[best].append(index)
            room[best] -= lengths[index]
        else:
            bins.append([index])
            room.append(max_tokens - lengths[index])
    return bins

"""Group pairs into micro batches by token count. A pair is never cut, so both its responses share one copy of the prompt."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Assign the indices of `lengths` (tokens per pair) to bins of at most `max_tokens` tokens, by best-fit decreasing.

    A pair longer than `max_tokens` gets a bin of its own. Every index appears once. The result depends on the arguments alone.
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

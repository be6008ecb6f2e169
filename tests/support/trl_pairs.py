"""Six pairs by their tokens, for TRL's losses and for ours: plain numbers, since each runs without the other."""

from __future__ import annotations

LENGTHS = ((3, 7), (9, 4), (5, 5), (17, 2), (6, 11), (1, 8))  # tokens of chosen and rejected


def tokens(pair: int, side: int) -> list[tuple[float, float, float]]:
    """Of each token of a response: its log-prob, that under the reference, and the log of the sum of squared probabilities."""
    rows = []
    for t in range(LENGTHS[pair][side]):
        logp = -0.05 - ((31 * pair + 17 * t * t + 7 * side) % 97) / 40
        ref = logp - ((13 * pair + 5 * t + 11 * side) % 23 - 11) / 5
        rows.append((logp, ref, -0.1 - ((19 * pair + 3 * t + 5 * side) % 29) / 12))
    return rows

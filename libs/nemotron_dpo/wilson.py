"""How sure a share of pairs is: Wilson's interval (1927), which all accuracies have, in reports and in scores.

It is right for few pairs, and for all or none of them, where drawing pairs again knows no doubt.
"""

from __future__ import annotations

from math import sqrt

_Z = 1.959964  # of the normal distribution: 95 of 100 lie within


def interval_of_share(hits: int, count: int) -> tuple[float, float]:
    """The ends of the 95 % interval of `hits` of `count`."""
    share, size = hits / count, float(count)  # as an integer twice as many may be more than a float can be
    middle = (share + _Z * _Z / (2 * size)) / (1 + _Z * _Z / size)
    half = _Z * sqrt(share * (1 - share) / size + _Z * _Z / (4 * size * size)) / (1 + _Z * _Z / size)
    return max(0.0, middle - half), min(1.0, middle + half)

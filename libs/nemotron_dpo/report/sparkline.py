"""A curve in one line of characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(values: Sequence[float], width: int = 40, *, log: bool = False) -> str:
    """The finite ones of `values` as bars of eight heights, from the least to the greatest; of many, means of neighbours."""
    drawn = [math.log(value) if log else value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not drawn:
        return ""
    if len(drawn) > width:
        cuts = [round(n * len(drawn) / width) for n in range(width + 1)]
        drawn = [sum(drawn[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(drawn), max(drawn)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in drawn)

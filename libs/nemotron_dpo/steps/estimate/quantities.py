"""Quantities as a person reads them: seconds, counts, and FLOPs or bytes with a unit's prefix."""

from __future__ import annotations


def spoken_seconds(seconds: float) -> str:
    """Two or three digits, in the largest unit of which there are at least two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def rounded(number: float) -> str:
    """Three digits and T, B, M or K, as parameters are counted."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def scaled(number: float) -> str:
    """Three digits and a unit's prefix."""
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= 0.9995 * size:
            return f"{float(f'{number / size:.3g}'):g} {prefix}"
    return f"{number / 1e3:.0f} k"

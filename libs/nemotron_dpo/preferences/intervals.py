"""How well figures of held-out pairs are known: bootstrap intervals over pairs (Efron 1979), also of paired differences.
A share of pairs alone, as an accuracy is, has Wilson's.

Pairs are drawn with replacement, so a pair's tokens and both its responses stay together. Each figure is a ratio of two sums
over pairs: an accuracy counts right pairs and pairs, a mean per token sums values and tokens. Two checkpoints that are
compared are drawn alike, so what makes a pair hard for both cancels.

Legend: P pairs, F figures, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemotron_dpo.wilson import interval_of_share

RESAMPLES, SEED = 1000, 0
_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Ratio:
    """A figure as a ratio of two sums over pairs, each float64 [P]; of a share, ones and zeros: is it a hit, does it count."""

    top: np.ndarray
    bottom: np.ndarray
    is_share: bool = False

    @property
    def value(self) -> float:
        """The figure of all pairs; NaN where no pair counts."""
        total = float(self.bottom.sum())
        return float(self.top.sum()) / total if total else float("nan")


def resampled(figures: Mapping[str, Ratio]) -> dict[str, np.ndarray]:
    """Each figure of RESAMPLES draws of as many pairs, float64 [B]; NaN where a draw has no pair that counts.

    The draws depend on the number of pairs alone.
    """
    if not figures:
        return {}
    tops_FP = np.stack([figure.top.astype(np.float64) for figure in figures.values()])
    bottoms_FP = np.stack([figure.bottom.astype(np.float64) for figure in figures.values()])
    num_pairs, random = tops_FP.shape[1], np.random.default_rng(SEED)
    values_BF = np.empty((RESAMPLES, len(figures)))
    for draw in range(RESAMPLES):
        times_P = np.bincount(random.integers(0, num_pairs, num_pairs), minlength=num_pairs).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            values_BF[draw] = (tops_FP @ times_P) / (bottoms_FP @ times_P)
    return dict(zip(figures, values_BF.T, strict=True))


def interval(values_B: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval; None where no draw has the figure."""
    there = values_B[np.isfinite(values_B)]
    return [float(edge) for edge in np.percentile(there, _PERCENT)] if len(there) else None


def intervals(figures: Mapping[str, Ratio]) -> dict[str, list[float] | None]:
    """The interval of each figure: Wilson's of a share, else that of the bootstrap."""
    drawn = resampled({name: figure for name, figure in figures.items() if not figure.is_share})
    return {name: interval(drawn[name]) if name in drawn else _of_share(figure) for name, figure in figures.items()}


def _of_share(figure: Ratio) -> list[float] | None:
    count = int(figure.bottom.sum())
    return list(interval_of_share(int(figure.top.sum()), count)) if count else None


def difference(ours: Mapping[str, Ratio], theirs: Mapping[str, Ratio]) -> dict[str, tuple[float, list[float] | None]]:
    """Of each figure that both have, ours less theirs, and the interval of that difference over the same draws."""
    common = [name for name in ours if name in theirs]
    mine, other = (resampled({name: figures[name] for name in common}) for figures in (ours, theirs))
    return {name: (ours[name].value - theirs[name].value, interval(mine[name] - other[name])) for name in common}

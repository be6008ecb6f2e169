"""How attention makes scores of queries and keys, beside which of them meet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Products of queries and keys times `scale`, then bounded to `softcap` * tanh(score / softcap), where that is asked for.

    A query sees the last `window` keys of its path, its own among them; None all.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None

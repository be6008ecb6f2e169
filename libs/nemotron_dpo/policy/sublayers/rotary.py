"""Rotary positions: the angles by which queries and keys turn, and how a model scales them to longer texts. Knows no torch.

What the numbers are made of is `policy.rotary`'s to compute. The rules are those of transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Llama3Scaling:
    """Of Llama 3.1 and later: waves longer than original_length / low_frequency are stretched, those between in part."""

    factor: float
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """NTK-aware: beyond max_position_embeddings the base grows with the length of the text. Up to that it changes nothing.

    Longer texts are refused, as of every policy: what they compute depends on the longest text that was seen before.
    """

    factor: float


@dataclass(frozen=True)
class Yarn:
    """Fast waves as they are, slow ones stretched by `factor`, those between in part (Peng et al. 2023).

    attention_factor: of cosines and sines; None has it made of `mscale` and `mscale_all_dim`, or of the factor alone.
    truncate: the ends of what is between are whole channels. query_growth: by how much queries are larger behind the original
    length, Llama 4's way and Ministral 3's: times 1 + query_growth * ln(1 + how often that length is before the position).
    """

    factor: float
    original_length: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    query_growth: float | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def _growth(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class LongRope:
    """A divisor for each frequency, of one list in texts of up to `original_length` tokens, else of the other (Ding 2024).

    `factor` is by how much the model's texts are longer than the original ones.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    factor: float
    original_length: int
    attention_factor: float | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))


Scaling = Llama3Scaling | LinearScaling | Dynamic | Yarn | LongRope


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the base of their angles, the part of each head that is rotated, a scaling."""

    base: float
    percent: float = 1.0
    scaling: Scaling | None = None

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied with."""
        return self.scaling.amplitude if isinstance(self.scaling, Yarn | LongRope) else 1.0

    def size(self, head_size: int) -> int:
        """How many channels of a head turn."""
        return int(head_size * self.percent)

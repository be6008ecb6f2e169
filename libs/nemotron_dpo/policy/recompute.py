"""Which activations a training step computes again in its backward pass instead of keeping them. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recompute:
    """What is computed again, in megatron-core's words.

    "full" keeps only what enters a unit of `num_layers` layers (uniform), or of each of the first `num_layers` layers of a
    stage (block). "selective" recomputes the named `modules` of every layer.
    """

    granularity: Literal["full", "selective"] = "full"
    method: Literal["uniform", "block"] = "uniform"
    num_layers: int = 1
    modules: tuple[str, ...] = ("core_attn",)

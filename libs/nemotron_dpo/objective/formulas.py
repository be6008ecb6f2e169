"""Parts that the formulas of several objectives share, exact and finite in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nemotron_dpo.objective.protocol import FirstReading, PairLosses, Rewards

if TYPE_CHECKING:
    from torch import Tensor

PREFERENCE = "preference"  # the term of an objective that compares responses
NLL = "nll"  # the term of one that also fine-tunes on the chosen response
# The greatest exponent of e that is computed: e^80 is 5.5e34, and float32 ends at 3.4e38. TRL has the same one.
MAX_EXPONENT = 80.0


def reading(value: float, formula: str, slope: float) -> Mapping[str, FirstReading | None]:
    """The terms of an objective that is one term, with what it reads first."""
    return {PREFERENCE: FirstReading(value, formula, slope)}


def one_term(loss: Tensor, rewards: Rewards) -> PairLosses:
    """The losses of an objective that is one term."""
    return PairLosses(loss, {PREFERENCE: loss}, rewards)


def logistic(x: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(x); with label smoothing eps, -(1-eps) log sigmoid(x) - eps log sigmoid(-x)."""
    from torch.nn.functional import logsigmoid

    if label_smoothing == 0:
        return -logsigmoid(x)
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def capped_exp(x: Tensor) -> Tensor:
    """e^min(x, 80): past that it is constant, with slope 0, so that neither it nor a difference of two is infinite or NaN."""
    return x.clamp(max=MAX_EXPONENT).exp()


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e^logp.

    A probability that rounds to 1 counts as 1 - 2^-24, the next float32 below 1: its odds would be infinite.
    """
    import torch

    below_one = logp.clamp(max=-(2.0**-24))
    return below_one - torch.log(-torch.expm1(below_one))

"""The noise floor of a run: how far its rewards move where its weights move by the least that their dtype can say.

Every rounding between two layers then falls differently, as it does after any step, be it so small that it means nothing: what
the rewards change by is what they are not known to. How many weights move hardly matters: in SmolLM2-135M in bfloat16 rewards
of 50 tokens move by 0.27 to 0.50 nats rms when one weight of 16 does, of 256, of 4099 or of 65537.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nemotron_dpo.policy import parallel

_STRIDE = 257  # weights, of which one moves: no divisor of a row's length, so that all columns have some
_BITS = {2: torch.int16, 4: torch.int32}  # integers by the bytes of a weight


@contextlib.contextmanager
def moved_by_one_unit(model: nn.Module) -> Iterator[None]:
    """Every 257th weight has the last bit of its significand turned over, and turned back at the end."""
    _turn_last_bits(model)
    try:
        yield
    finally:
        _turn_last_bits(model)


def rms_over_job(changes: Tensor) -> float:
    """The root of the mean square of all ranks' changes of rewards; a rank that has none passes an empty tensor."""
    squares = changes.double().square()
    total, count = parallel.sum_over_job(torch.stack([squares.sum(), torch.ones_like(squares).sum()])).tolist()
    return (total / count) ** 0.5


def floor(reward_noise: float, num_pairs: float) -> float:
    """What a mean reward of so many pairs is noise below: two standard errors. A difference of two means has sqrt(2) of it."""
    return 2 * reward_noise / num_pairs**0.5


def floor_metric(reward_noise: float | None, num_pairs: float) -> dict[str, float]:
    """`floor` as a metric of a record; empty where no noise was measured."""
    return {} if reward_noise is None else {"reward_noise_floor": floor(reward_noise, num_pairs)}


def _turn_last_bits(model: nn.Module) -> None:
    for index, weight in enumerate(model.parameters()):
        bits = weight.data.view(-1).view(_BITS[weight.element_size()])
        bits[index % min(_STRIDE, len(bits)) :: _STRIDE].bitwise_xor_(1)

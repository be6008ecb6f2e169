"""The noise floor of a run: how much its rewards change when weights change by the smallest step of their dtype.

Such a change means nothing, but every rounding between two layers then falls differently, as it does after any training step.
So the rewards are not known better than by the amount they change here. How many weights change hardly matters: in SmolLM2-135M
in bfloat16, the rewards of responses of 50 tokens change by 0.27 to 0.50 nats rms, whether one weight in 16, in 256, in 4099 or
in 65537 changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nemotron_dpo.policy import parallel

_STRIDE = 257  # one weight in 257 changes; 257 divides no row length, so changes fall in all columns
_BITS = {2: torch.int16, 4: torch.int32}  # bytes of a weight -> the integer dtype of that size


@contextlib.contextmanager
def moved_by_one_unit(model: nn.Module) -> Iterator[None]:
    """Flip the last bit of the significand of every 257th weight for the block, and flip it back at its end."""
    _turn_last_bits(model)
    try:
        yield
    finally:
        _turn_last_bits(model)


def rms_over_job(changes: Tensor) -> float:
    """The root mean square, in nats, of the changes of rewards on all ranks. A rank without rewards passes an empty tensor."""
    squares = changes.double().square()
    total, count = parallel.sum_over_job(torch.stack([squares.sum(), torch.ones_like(squares).sum()])).tolist()
    return (total / count) ** 0.5


def floor(reward_noise: float, num_pairs: float) -> float:
    """The noise floor of a mean reward over `num_pairs` pairs, in nats: two standard errors. A smaller mean is noise.

    The floor of a difference of two such means is sqrt(2) times as high.
    """
    return 2 * reward_noise / num_pairs**0.5


def floor_metric(reward_noise: float | None, num_pairs: float) -> dict[str, float]:
    """`floor` as a metric of a record; empty if no noise was measured."""
    return {} if reward_noise is None else {"reward_noise_floor": floor(reward_noise, num_pairs)}


def _turn_last_bits(model: nn.Module) -> None:
    for index, weight in enumerate(model.parameters()):
        bits = weight.data.view(-1).view(_BITS[weight.element_size()])
        bits[index % min(_STRIDE, len(bits)) :: _STRIDE].bitwise_xor_(1)

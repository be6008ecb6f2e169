"""Products of bfloat16 on x86 CPUs without AVX512, as laptops have: torch's own take 7 to 100 times as long as float32's.

Products of two numbers in bfloat16 are exact in float32. So those of float32 copies, rounded once, are what a CPU with
instructions for bfloat16 computes, up to the order of their sums.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.cache
def is_slow() -> bool:
    """Whether this CPU's products of bfloat16 are."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def by_float32(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`multiply`, of two tensors and perhaps a bias, by float32 copies where all are of bfloat16 and on the CPU.

    What is called by keywords is left to `multiply`, as is what it has to refuse.
    """

    @functools.wraps(multiply)
    def product(*factors: Any, **options: Any) -> Tensor:
        if options or not all(one is None or _is_of_bfloat16(one) for one in factors):
            return multiply(*factors, **options)
        return multiply(*(one if one is None else one.float() for one in factors)).bfloat16()

    return product


def _is_of_bfloat16(factor: object) -> bool:
    return isinstance(factor, Tensor) and factor.dtype is torch.bfloat16 and factor.device.type == "cpu"


def rounded_product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right in `out`, rounded to its dtype, which is theirs."""
    if out.dtype is torch.bfloat16 and out.device.type == "cpu" and is_slow():
        return out.copy_(torch.mm(left.float(), right.float()))
    return torch.mm(left, right, out=out)

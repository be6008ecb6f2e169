"""How fast this machine multiplies matrices: `python -m nemotron_dpo.kernels.product_rate bfloat16` prints FLOP/s.

The products are as large as those of a linear layer of a few hundred million parameters, forward. One thread makes them, by its
own clock, so that what else runs on the machine hardly counts; the rate is that of as many such threads as torch would take.
"""

from __future__ import annotations

import sys
import time

import torch

from nemotron_dpo.kernels.torch_ops.bfloat16_matmul import by_float32, is_slow
from nemotron_dpo.kernels.torch_ops.float32_matmul import prefer_onednn

_TOKENS, _INPUTS, _OUTPUTS = 1024, 1024, 4096


def product_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of products in `dtype`: the best of those made in so many seconds, after one that is not counted."""
    prefer_onednn()
    multiply = by_float32(torch.nn.functional.linear) if is_slow() else torch.nn.functional.linear
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.randn(_TOKENS, _INPUTS, dtype=dtype), torch.randn(_OUTPUTS, _INPUTS, dtype=dtype)
    times, ends = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < ends:
        started = time.thread_time()
        multiply(left, right)
        times.append(time.thread_time() - started)
    return threads * 2 * _TOKENS * _INPUTS * _OUTPUTS / min(times[1:])


if __name__ == "__main__":
    print(product_rate(getattr(torch, sys.argv[1])))

"""Memory for intermediate results, used again by every layer and micro batch.

On a CPU the pages of a new tensor cost as much as the arithmetic in it, and glibc's aligned allocations leave holes between
what is kept for the backward pass that no later tensor of the same size fits into. GPUs have torch's caching allocator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_memory: dict[tuple[str, torch.dtype], Tensor] = {}


def scratch(name: str, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """A tensor of that shape with anything in it, valid until `name` is asked for again: never return it to a caller."""
    if device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape)
    known = _memory.get((name, dtype))
    if known is None or len(known) < size:
        with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside it
            known = _memory[name, dtype] = torch.empty(size, dtype=dtype)
    return known[:size].view(shape)

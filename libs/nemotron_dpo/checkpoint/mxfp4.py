"""Weights in MXFP4 (OCP Microscaling Formats 1.0): numbers of 4 bits, of which each 32 share a power of two.

gpt-oss stores its experts so: for each output channel blocks of 16 bytes, two numbers a byte, the lower half first; beside
them a byte a block, the exponent plus 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"  # the ends of the names of the two tensors that make one weight
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the lower three bits; the fourth is the sign
_BIAS = 127


def is_named(quantization: Any) -> bool:
    """Whether config.json's quantization_config says that it is this one."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


def dequantized(blocks: Tensor, scales: Tensor) -> Tensor:
    """bfloat16 [rows, columns] of blocks uint8 [rows, columns / 32, 16] and scales uint8 [rows, columns / 32]: exactly."""
    import torch

    values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.bfloat16)
    numbers = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)  # [rows, columns / 32, 32]
    exponents = scales.to(torch.int32)[..., None] - _BIAS
    return torch.ldexp(values[numbers.int()], exponents).to(torch.bfloat16).flatten(-2)

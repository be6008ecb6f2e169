"""Which kernels multiply float32 matrices on a CPU: torch takes MKL's, oneDNN's on request.

The request is called a precision. "bf16" lets oneDNN round what it reads to bfloat16, which it does where the CPU has tiles of
bfloat16 (AMX) and nowhere else; elsewhere it multiplies in float32 as MKL does, but as fast on every maker's CPU, where MKL
takes twice as long on AMD's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

_ABSENT = SimpleNamespace(fp32_precision="none")  # before torch 2.9


def prefer_onednn() -> None:
    """Let float32 products of this process take oneDNN's kernels, unless these turn out to round."""
    settings, before = _settings(), _settings().fp32_precision
    settings.fp32_precision = "bf16"
    if not _is_exact():
        settings.fp32_precision = before


@contextlib.contextmanager
def rounding_allowed(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 copies of tensors of `dtype` may round what they read to bfloat16, if that is what `dtype` is."""
    settings = _settings()
    before = settings.fp32_precision
    if dtype is torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _settings() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", _ABSENT)


def _is_exact() -> bool:
    """Whether a product of float32 keeps what bfloat16 and TF32 lose."""
    size = 256  # small ones go another way
    product = torch.full((size, size), 1 + 2.0**-12) @ torch.ones(size, size)
    return bool((product - (size + size * 2.0**-12)).abs().max() < 1e-3)

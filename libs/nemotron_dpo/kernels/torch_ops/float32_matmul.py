"""Products in float32, and which kernels make them on a CPU: torch takes MKL's, oneDNN's on request.

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
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch

_GIVES_WIDE = hasattr(torch.ops.aten.mm, "dtype_out")  # from torch 2.8 on
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


@contextlib.contextmanager
def tf32_allowed(x: Tensor) -> Iterator[None]:
    """On a GPU, products of float32 copies of `x` may round what they read to TF32, if it is bfloat16, which is no finer."""
    settings: Any = torch.backends.cuda.matmul
    before = settings.fp32_precision
    if x.is_cuda and x.dtype is torch.bfloat16:
        settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        if settings.fp32_precision != before:
            settings.fp32_precision = before


def float_product(x_CH: Tensor, weight_BH: Tensor, out_CB: Tensor) -> None:
    """x @ weight.T in float32, also of bfloat16; those products are exact in float32, as they are in TF32.

    On a CPU with tiles of bfloat16 and on GPUs this takes no longer than a rounded product, elsewhere up to twice as long.
    """
    if x_CH.dtype is torch.float32:
        torch.mm(x_CH, weight_BH.t(), out=out_CB)
    elif x_CH.is_cuda and _GIVES_WIDE:
        torch.ops.aten.mm.dtype_out(x_CH, weight_BH.t(), out_CB.dtype, out=out_CB)
    else:
        wide = (
            scratch(name, *x.shape, device=x.device).copy_(x) for name, x in (("wide rows", x_CH), ("wide weight", weight_BH))
        )
        with rounding_allowed(x_CH.dtype):
            torch.mm(next(wide), next(wide).t(), out=out_CB)


def _settings() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", _ABSENT)


def _is_exact() -> bool:
    """Whether a product of float32 keeps what bfloat16 and TF32 lose."""
    size = 256  # small ones go another way
    product = torch.full((size, size), 1 + 2.0**-12) @ torch.ones(size, size)
    return bool((product - (size + size * 2.0**-12)).abs().max() < 1e-3)

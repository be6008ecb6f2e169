"""Gradients of weights, added where they are summed up.

Legend: S tokens, N output and K input features, V vocabulary entries, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.bfloat16_matmul import rounded_product

_ADDS_WIDE = hasattr(torch.ops.aten.addmm, "dtype_out")  # from torch 2.8 on
_BLOCK_ROWS = 4096  # of a gradient: as much of a product as stays in a CPU's cache until it is added


def add_product(total_NK: Tensor, grad_SN: Tensor, x_SK: Tensor) -> None:
    """total += grad.T @ x, the product rounded to the dtype of its factors, or on a GPU not at all."""
    if total_NK.dtype is grad_SN.dtype:
        total_NK.addmm_(grad_SN.t(), x_SK)
        return
    if total_NK.is_cuda and _ADDS_WIDE:
        torch.ops.aten.addmm.dtype_out(total_NK, grad_SN.t(), x_SK, total_NK.dtype, out=total_NK)
        return
    rows, where = len(total_NK) if total_NK.is_cuda else _BLOCK_ROWS, total_NK.device
    for part, columns in zip(total_NK.split(rows), grad_SN.split(rows, dim=1), strict=True):
        product = scratch("product", *part.shape, dtype=x_SK.dtype, device=where)
        kernels().add_rounded(part, rounded_product(columns.t(), x_SK, product))


def add_rows(total_VH: Tensor, places_S: Tensor, rows_SH: Tensor) -> None:
    """total[places] += rows, where places may be the same; in one order on every device."""
    rows_SH = rows_SH.to(total_VH.dtype)
    if total_VH.is_cuda:  # where index_add_ adds in the order that threads come by
        total_VH.index_put_((places_S,), rows_SH, accumulate=True)
    else:
        total_VH.index_add_(0, places_S, rows_SH)

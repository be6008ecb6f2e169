"""What lies between the products of a layer, in one pass over memory, in C: for bfloat16 on a CPU.

Values are rounded where torch's operations round them, so both agree but for the order of float32 sums.

Legend: T tokens, H features, N heads, D head size.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops import activation, norm, rotary
from nemotron_dpo.kernels.torch_ops.table import add_rounded as add_rounded_by_torch

_LANES = 16  # at most


def swiglu(library: ctypes.CDLL, gate_and_up: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu`."""
    if not _serves(gate_and_up):
        return activation.swiglu(gate_and_up, owner)
    size = gate_and_up.shape[-1] // 2
    out = gate_and_up.new_empty(*gate_and_up.shape[:-1], size)
    _run(library.swiglu, gate_and_up, out, out.numel() // size, size)
    return out


def swiglu_backward(library: ctypes.CDLL, gate_and_up: Tensor, grad: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu_backward`."""
    if not _serves(gate_and_up):
        return activation.swiglu_backward(gate_and_up, grad, owner)
    out = torch.empty_like(gate_and_up)
    _run(library.swiglu_backward, gate_and_up, grad.contiguous(), out, grad.numel() // grad.shape[-1], grad.shape[-1])
    return out


def rms_norm(library: ctypes.CDLL, x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `Kernels.rms_norm`."""
    if not _serves(x):
        return norm.rms_norm(x, gain_H, eps)
    num_rows, size = x.numel() // x.shape[-1], x.shape[-1]
    out, scales_T = torch.empty_like(x), torch.empty(num_rows)
    _run(library.rms_norm, x, gain_H, out, scales_T, num_rows, size, eps)
    return out, scales_T


def rms_norm_backward(
    library: ctypes.CDLL, x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor, of_gain: bool
) -> tuple[Tensor, Tensor | None]:
    """As `Kernels.rms_norm_backward`."""
    if not _serves(x):
        return norm.rms_norm_backward(x, gain_H, scales_T, grad, of_gain)
    size, threads = x.shape[-1], torch.get_num_threads()
    out, gain_grad_H = torch.empty_like(x), torch.empty_like(gain_H)
    parts = scratch("gain gradients", threads * (size + _LANES))
    _run(library.rms_norm_backward, x, gain_H, scales_T, grad.contiguous(), out, gain_grad_H, parts, len(scales_T), size)
    return out, gain_grad_H


def rotate(library: ctypes.CDLL, x_TND: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    """As `Kernels.rotate`."""
    if not _serves(cosines, sines):
        return rotary.rotate(x_TND, cosines, sines, direction)
    x_TND = x_TND.contiguous()
    out = torch.empty_like(x_TND)
    num_rows, _, num_heads, size = x_TND.shape
    _run(library.rotate, x_TND, cosines, sines, out, num_rows, num_heads, size, cosines.shape[-1], direction)
    return out


def add_rounded(library: ctypes.CDLL, total: Tensor, part: Tensor) -> None:
    """As `Kernels.add_rounded`."""
    if _serves(part) and total.dtype is torch.float32 and total.is_contiguous():
        _run(library.add_half, total, part, part.numel())
    else:
        add_rounded_by_torch(total, part)


def _serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these: bfloat16 in the memory of a CPU, without gaps."""
    return all(x.dtype is torch.bfloat16 and not x.is_cuda and x.is_contiguous() for x in tensors)


def _run(function: ctypes._NamedFuncPointer, *values: Tensor | float) -> None:
    arguments = (value.data_ptr() if isinstance(value, Tensor) else value for value in values)
    function(*arguments, torch.get_num_threads())

"""The recurrence of Mamba-2 on a CPU, in C: what torch_ops/mamba2.py computes, without its temporaries.

Legend: S packed tokens, N heads, D head size, G groups of heads that share B and C, K state size.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from nemotron_dpo.kernels.c.trees import call_of, empty, parts, pointers, rows, serves
from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.protocol import ScanGradients
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops import mamba2, mamba2_backward


def scan(
    library: ctypes.CDLL,
    x_SND: Tensor,
    dt_SN: Tensor,
    A_N: Tensor,
    B_SGK: Tensor,
    C_SGK: Tensor,
    D_N: Tensor,
    chunks: Chunks,
) -> Tensor:
    """As `Kernels.scan`."""
    if not serves(x_SND, B_SGK, C_SGK, chunks):
        return mamba2.scan(x_SND, dt_SN, A_N, B_SGK, C_SGK, D_N, chunks)
    x, B, C = (rows(of) for of in (x_SND, B_SGK, C_SGK))
    wide = [of.float().contiguous() for of in (dt_SN, A_N, D_N)]
    call, out = call_of(x, B, C, x, chunks), empty(x.shape, x.dtype, chunks)
    memory = scratch("scan", call.num_threads * library.scan_floats(ctypes.byref(call)))
    library.scan(ctypes.byref(call), pointers(x, B, C, *wide, out), memory.data_ptr())
    return out


def scan_backward(
    library: ctypes.CDLL,
    grad_SND: Tensor,
    x_SND: Tensor,
    dt_SN: Tensor,
    A_N: Tensor,
    B_SGK: Tensor,
    C_SGK: Tensor,
    D_N: Tensor,
    chunks: Chunks,
) -> ScanGradients:
    """As `Kernels.scan_backward`."""
    if not serves(x_SND, B_SGK, C_SGK, chunks):
        return mamba2_backward.scan_backward(grad_SND, x_SND, dt_SN, A_N, B_SGK, C_SGK, D_N, chunks)
    x, B, C, grad = (rows(of) for of in (x_SND, B_SGK, C_SGK, grad_SND.to(x_SND.dtype)))
    wide = [of.float().contiguous() for of in (dt_SN, A_N, D_N)]
    call = call_of(x, B, C, grad, chunks)
    dx, ddt = empty(x.shape, x.dtype, chunks), empty(dt_SN.shape, torch.float32, chunks)
    num_parts = library.scan_parts(ctypes.byref(call))
    dB, dC = (parts(name, num_parts, of, chunks) for name, of in (("scan: parts of B", B), ("scan: parts of C", C)))
    rates, skips = torch.zeros(2, call.num_trees, len(A_N))
    memory = scratch("scan", call.num_threads * library.scan_backward_floats(ctypes.byref(call)))
    of = pointers(x, B, C, *wide, grad, dx, ddt, dB, dC, rates, skips)
    library.scan_backward(ctypes.byref(call), of, memory.data_ptr())
    dA, dD = rates.sum(0).to(A_N.dtype), skips.sum(0).to(D_N.dtype)
    return dx, ddt.to(dt_SN.dtype), dA, dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD

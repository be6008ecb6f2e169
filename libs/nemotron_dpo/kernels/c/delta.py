"""The gated delta rule on a CPU, in C: what torch_ops/gated_delta.py computes, without its temporaries.

Legend: S packed tokens, N value heads, of which N / G share each of G heads of queries and keys, D value size, K key size.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.c.trees import call_of, empty, parts, pointers, rows, serves
from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops import gated_delta as by_torch


def gated_delta(
    library: ctypes.CDLL, q_SGK: Tensor, k_SGK: Tensor, v_SND: Tensor, g_SN: Tensor, beta_SN: Tensor, chunks: Chunks
) -> Tensor:
    """As `Kernels.gated_delta`."""
    if not serves(v_SND, k_SGK, q_SGK, chunks):
        return by_torch.gated_delta(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks)
    return _GatedDelta.apply(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks, library)  # type: ignore[return-value] - torch does not type it


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks, library: Any) -> Tensor:
        ctx.save_for_backward(q, k, v, g, beta)
        ctx.chunks, ctx.library = chunks, library
        v, k, q = (rows(of) for of in (v, k, q))
        call, out = call_of(v, k, q, v, chunks), empty(v.shape, v.dtype, chunks)
        memory = scratch("scan", call.num_threads * library.delta_floats(ctypes.byref(call)))
        wide = [of.float().contiguous() for of in (g, beta)]
        library.delta(ctypes.byref(call), pointers(v, k, q, *wide, out), memory.data_ptr())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta = ctx.saved_tensors
        return *gradients(ctx.library, grads[0], q, k, v, g, beta, ctx.chunks), None, None


def gradients(
    library: ctypes.CDLL, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks
) -> tuple[Tensor, ...]:
    """Of q, k, v, g and beta, each in its dtype."""
    v, k, q, grad = (rows(of) for of in (v, k, q, grad.to(v.dtype)))
    wide = [of.float().contiguous() for of in (g, beta)]
    call = call_of(v, k, q, grad, chunks)
    dv, dg, dbeta = empty(v.shape, v.dtype, chunks), *(empty(g.shape, torch.float32, chunks) for _ in range(2))
    num_parts = library.delta_parts(ctypes.byref(call))
    dk, dq = (parts(name, num_parts, of, chunks) for name, of in (("scan: parts of B", k), ("scan: parts of C", q)))
    memory = scratch("scan", call.num_threads * library.delta_backward_floats(ctypes.byref(call)))
    of = pointers(v, k, q, *wide, grad, dv, dg, dbeta, dk, dq)
    library.delta_backward(ctypes.byref(call), of, memory.data_ptr())
    return dq.sum(0).to(q.dtype), dk.sum(0).to(k.dtype), dv, dg.to(g.dtype), dbeta.to(beta.dtype)

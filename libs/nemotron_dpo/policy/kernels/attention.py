"""Causal attention by segment on a CPU, by the compiled kernels: what `segment_attention` computes, twice as fast.

Products of bfloat16 with one another, which are exact in float32, are multiplied as such; probabilities and all sums are
float32, whatever the inputs are.

Legend: L queries, S keys, N query heads, G key/value heads, D head size; R runs.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.kernels.build import library
from nemotron_dpo.policy.workspace import room

_LARGEST_SIZE = 512  # of a head: a row of it must fit where a block's scores against the fewest keys do (pack in attention.c)


def serves(query: Tensor) -> bool:
    """Whether there are kernels for such queries [L, 1, N, D]."""
    is_known = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    return is_known and query.shape[3] <= _LARGEST_SIZE and library() is not None


def attend(query: Tensor, key: Tensor, value: Tensor, runs_R6: Tensor, scale: float) -> Tensor:
    """Attention [L, 1, N * D] of query [L, 1, N, D] over key and value [S, 1, G, D].

    runs_R6: int64; of each run of consecutive queries its first one, their number, the number of keys that the last of them
    sees (each before it one key less), and where these are: the first of them, how many follow it, the first of the others.
    """
    return _Attend.apply(query.contiguous(), key.contiguous(), value.contiguous(), runs_R6, scale)  # type: ignore[return-value] - torch does not type Function.apply


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs_R6: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(query)
        normalizer_LN = torch.empty(query.shape[0], query.shape[2])
        call = _call(query, key, runs_R6, scale)
        of = _pointers(query, key, value, out, normalizer_LN)
        _library().attend(ctypes.byref(call), of, _rooms(call, "forward_room"))
        ctx.save_for_backward(query, key, value, normalizer_LN)
        ctx.runs_R6, ctx.scale = runs_R6, scale
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, normalizer_LN = ctx.saved_tensors
        dquery, dkey, dvalue = (torch.empty_like(x) for x in (query, key, value))
        call, grad = _call(query, key, ctx.runs_R6, ctx.scale), grads[0].contiguous()
        of = _pointers(query, key, value, normalizer_LN, grad, dquery, dkey, dvalue)
        parts = room("attention parts", _library().parts_room(ctypes.byref(call))).data_ptr()
        _library().attend_backward(ctypes.byref(call), of, _rooms(call, "backward_room"), parts)
        return dquery, dkey, dvalue, None, None


class _Call(ctypes.Structure):
    """`Call` of attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_half", "num_heads", "num_groups", "size", "num_keys")),
        *((name, ctypes.c_int64) for name in ("num_runs", "num_threads")),
        ("runs", ctypes.c_void_p),
        ("scale", ctypes.c_float),
    ]


def _call(query: Tensor, key: Tensor, runs_R6: Tensor, scale: float) -> _Call:
    num_keys, _, num_groups, size = key.shape
    is_half, threads = query.dtype is torch.bfloat16, torch.get_num_threads()
    return _Call(is_half, query.shape[2], num_groups, size, num_keys, len(runs_R6), threads, runs_R6.data_ptr(), scale)


def _pointers(*tensors: Tensor) -> Any:
    """`Forward` or `Backward` of attention.c, which are nothing but pointers."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _rooms(call: _Call, name: str) -> int:
    """The address of what the function `name` asks for, for each thread."""
    return room("attention", call.num_threads * getattr(_library(), name)(ctypes.byref(call))).data_ptr()


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded

"""Causal attention over packed pairs on a CPU, in C: what torch_ops/block_attention.py computes, twice as fast.

Products of bfloat16 with one another, which are exact in float32, are multiplied as such; probabilities and all sums are
float32, whatever the inputs are.

Legend: L queries, S keys, N query heads, G key/value heads, D head size; R runs.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.segments import PackedTokens, causal_runs
from nemotron_dpo.kernels.torch_ops.attention import attend as attend_by_torch

_ALL = 2**62  # a window that hides nothing
_LARGEST_SIZE = 512  # of a head: a row of it must fit where a block's scores against the fewest keys do (pack in attention.c)


def attend(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedTokens,
    scores: Scores,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """As `Kernels.attend`."""
    is_known = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    if not is_known or query.shape[3] > _LARGEST_SIZE:
        return attend_by_torch(query, key, value, row, scores, sinks_N)
    of = query.contiguous(), key.contiguous(), value.contiguous()
    sinks = None if sinks_N is None else sinks_N.float()
    return _Attend.apply(*of, sinks, _runs(row, scores.window), scores, library)  # type: ignore[return-value] - torch does not type Function.apply


@functools.lru_cache(maxsize=2)  # layers with a window and without take turns
def _runs(row: PackedTokens, window: int | None) -> Tensor:
    """The runs of held tokens int64 [R, 6]; made once for all layers of a pass.

    Of each run its first query, their number, the number of keys that the last of them sees (each before it one key less), and
    where these are: the first of them, how many follow it, the first of the others.
    """
    runs = []
    for held, tokens, keys in causal_runs(row, window):
        first, *others = ((part.start, part.stop - part.start) for part in keys)
        then, num_others = others[0] if others else (0, 0)
        runs.append((held, tokens.stop - tokens.start, first[1] + num_others, *first, then))
    return torch.tensor(runs, dtype=torch.int64).view(-1, 6)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks_N: Tensor | None,
        runs_R6: Tensor,
        scores: Scores,
        library: ctypes.CDLL,
    ) -> Tensor:
        out = torch.empty_like(query)
        normalizer_LN = torch.empty(query.shape[0], query.shape[2])
        call = _call(query, key, runs_R6, scores)
        of = _pointers(query, key, value, sinks_N, out, normalizer_LN)
        library.attend(ctypes.byref(call), of, _per_thread(call, library.forward_floats))
        ctx.save_for_backward(query, key, value, sinks_N, normalizer_LN)
        ctx.runs_R6, ctx.scores, ctx.library = runs_R6, scores, library
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks_N, normalizer_LN = ctx.saved_tensors
        dquery, dkey, dvalue = (torch.empty_like(x) for x in (query, key, value))
        means_LN = None if sinks_N is None else torch.empty_like(normalizer_LN)
        call, grad = _call(query, key, ctx.runs_R6, ctx.scores), grads[0].contiguous()
        of = _pointers(query, key, value, normalizer_LN, grad, dquery, dkey, dvalue, means_LN)
        parts = scratch("attention parts", ctx.library.parts_floats(ctypes.byref(call))).data_ptr()
        ctx.library.attend_backward(ctypes.byref(call), of, _per_thread(call, ctx.library.backward_floats), parts)
        dsinks_N = None if sinks_N is None else -((sinks_N - normalizer_LN).exp() * means_LN).sum(0)
        return dquery, dkey, dvalue, dsinks_N, None, None, None


class _Call(ctypes.Structure):
    """`Call` of attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_half", "num_heads", "num_groups", "size", "num_keys")),
        *((name, ctypes.c_int64) for name in ("num_runs", "num_threads", "window")),
        ("runs", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]


def _call(query: Tensor, key: Tensor, runs_R6: Tensor, scores: Scores) -> _Call:
    num_keys, _, num_groups, size = key.shape
    is_half, threads, window = query.dtype is torch.bfloat16, torch.get_num_threads(), scores.window or _ALL
    runs = len(runs_R6), threads, window, runs_R6.data_ptr()
    return _Call(is_half, query.shape[2], num_groups, size, num_keys, *runs, scores.scale, scores.softcap or 0.0)


def _pointers(*tensors: Tensor | None) -> Any:
    """`Forward` or `Backward` of attention.c, which are nothing but pointers."""
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _per_thread(call: _Call, each: Any) -> int:
    """The address of as many floats for each thread as the library's function `each` says."""
    return scratch("attention", call.num_threads * each(ctypes.byref(call))).data_ptr()

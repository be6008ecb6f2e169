"""Causal attention by segment on a CPU, forward and backward, as matrix products over blocks of queries that fit its caches.

torch's own CPU kernel multiplies in float32 through small tiles and has no way to say "these queries are the last of those
keys" but a mask; here each block of queries meets just the keys it may see. Scores and probabilities are float32, whatever the
inputs are, and are computed again in the backward pass instead of being kept (Dao et al. 2022, sections 3.1 and B.2).

Legend: L queries, S keys, G key/value heads, Q query heads of each, D head size; M the queries of all heads of a group behind
one another, token by token, B those of a block, and E its keys.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.workspace import room

BLOCK = 128  # of queries: large enough for the matrix products, small enough that a block's scores stay in a core's cache


@dataclass(frozen=True)
class Run:
    """Consecutive queries, and the keys they may see: `keys` in order, the last of which are the queries' own."""

    queries: slice
    keys: tuple[slice, ...]


def attend(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], scale: float) -> Tensor:
    """Attention [L, 1, G * Q * D] of query [L, 1, G * Q, D] over key and value [S, 1, G, D]; every query is in one run."""
    return _Attend.apply(query, key, value, runs, scale)  # type: ignore[return-value]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.runs, ctx.scale = runs, scale
        q_GMD, k_GSD, v_GSD = _queries("q", query, key.shape[2]), _keys("k", key), _keys("v", value)
        out_GMD, work = room("attention out", *q_GMD.shape), _Work.of(query, key, runs, scale)
        with _products(query.dtype):
            for run in runs:
                k_run, v_run = _seen(k_GSD, run), _seen(v_GSD, run)
                for block, num_keys in _blocks(run, work.per_group):
                    p_GBE = work.probabilities(q_GMD[:, block], k_run[:, :num_keys])
                    out_GMD[:, block] = torch.bmm(p_GBE, v_run[:, :num_keys])
        return _tokens_first(out_GMD, query).flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        q_GMD, k_GSD, v_GSD = _queries("q", query, key.shape[2]), _keys("k", key), _keys("v", value)
        grad_GMD = _queries("grad", grads[0].view(query.shape), key.shape[2])
        dq, dk, dv = (room(f"attention {name}", *x.shape) for name, x in (("dq", q_GMD), ("dk", k_GSD), ("dv", v_GSD)))
        for total in (dk, dv):
            total.zero_()
        work = _Work.of(query, key, ctx.runs, ctx.scale)
        with _products(query.dtype):
            for run in ctx.runs:
                k_run, v_run = _seen(k_GSD, run), _seen(v_GSD, run)
                dk_run, dv_run = torch.zeros_like(k_run), torch.zeros_like(v_run)
                for block, num_keys in _blocks(run, work.per_group):
                    q_GBD, grad_GBD, seen = q_GMD[:, block], grad_GMD[:, block], slice(0, num_keys)
                    p_GBE = work.probabilities(q_GBD, k_run[:, seen])
                    dv_run[:, seen] += torch.bmm(p_GBE.mT, grad_GBD)
                    ds_GBE = work.score_gradients(grad_GBD, v_run[:, seen], p_GBE)
                    dq[:, block] = torch.bmm(ds_GBE, k_run[:, seen])
                    dk_run[:, seen] += torch.bmm(ds_GBE.mT, q_GBD)
                _add_seen(dk, dk_run, run)
                _add_seen(dv, dv_run, run)
        grads_of_inputs = (
            _tokens_first(total, like) for total, like in ((dq.mul_(ctx.scale), query), (dk.mul_(ctx.scale), key), (dv, value))
        )
        return *grads_of_inputs, None, None  # type: ignore[return-value]


@dataclass(frozen=True)
class _Work:
    """Room for the scores of one block and their gradients, and the part of them that causality hides."""

    scale: float
    per_group: int
    scores: Tensor
    gradients: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, runs: Sequence[Run], scale: float) -> _Work:
        per_group = query.shape[2] // key.shape[2]
        size = key.shape[2] * BLOCK * per_group * max((_num_keys(run) for run in runs), default=0)
        return cls(scale, per_group, room("scores", size), room("score gradients", size), _hidden(per_group))

    def probabilities(self, q_GBD: Tensor, k_GED: Tensor) -> Tensor:
        """softmax of the scaled scores [G, B, E], the block's own keys seen causally; valid until the next call."""
        s_GBE = _view(self.scores, len(q_GBD), q_GBD.shape[1], k_GED.shape[1])
        torch.baddbmm(s_GBE, q_GBD, k_GED.mT, beta=0, alpha=self.scale, out=s_GBE)
        num_own = q_GBD.shape[1] // self.per_group
        s_GBE[:, :, -num_own:] += self.hidden[: q_GBD.shape[1], :num_own]
        return torch.softmax(s_GBE, -1, out=s_GBE)

    def score_gradients(self, grad_GBD: Tensor, v_GED: Tensor, p_GBE: Tensor) -> Tensor:
        """The gradient [G, B, E] of the scaled scores: p * (dp - sum(p * dp)), where dp = grad @ v."""
        dp_GBE = torch.bmm(grad_GBD, v_GED.mT, out=_view(self.gradients, *p_GBE.shape))
        return torch.ops.aten._softmax_backward_data.out(dp_GBE, p_GBE, -1, torch.float32, grad_input=dp_GBE)


@functools.cache
def _hidden(per_group: int) -> Tensor:
    """-inf where one of BLOCK queries, each `per_group` times, must not see one of their own keys; else 0."""
    return torch.full((BLOCK, BLOCK), -torch.inf).triu_(1).repeat_interleave(per_group, dim=0)


@contextlib.contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 copies of bfloat16 tensors take the fast kernels, which may round to bfloat16 what they read."""
    settings: Any = getattr(torch.backends.mkldnn, "matmul", SimpleNamespace(fp32_precision="none"))  # since torch 2.9
    before = settings.fp32_precision
    if dtype is torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        with torch._C.DisableTorchFunction():  # nothing here names a device, and a mode costs a microsecond a call
            yield
    finally:
        settings.fp32_precision = before


def _blocks(run: Run, per_group: int) -> Iterator[tuple[slice, int]]:
    """(some of the run's queries as places in M, how many of its keys they see), in order."""
    first = run.queries.start
    before = _num_keys(run) - (run.queries.stop - first)
    for start in range(first, run.queries.stop, BLOCK):
        stop = min(run.queries.stop, start + BLOCK)
        yield slice(start * per_group, stop * per_group), before + stop - first


def _num_keys(run: Run) -> int:
    return sum(part.stop - part.start for part in run.keys)


def _seen(x_GSD: Tensor, run: Run) -> Tensor:
    return torch.cat([x_GSD[:, part] for part in run.keys], dim=1) if run.keys[1:] else x_GSD[:, run.keys[0]]


def _add_seen(total_GSD: Tensor, run_GED: Tensor, run: Run) -> None:
    """Add what `_seen` took apart back to where it came from."""
    start = 0
    for part in run.keys:
        stop = start + part.stop - part.start
        total_GSD[:, part] += run_GED[:, start:stop]
        start = stop


def _queries(name: str, x_LND: Tensor, num_groups: int) -> Tensor:
    """[L, 1, G * Q, D] -> float32 [G, L * Q, D]."""
    parted = x_LND.squeeze(1).unflatten(1, (num_groups, -1)).transpose(0, 1)
    return room(f"attention {name}", *parted.shape).copy_(parted).flatten(1, 2)


def _keys(name: str, x_SGD: Tensor) -> Tensor:
    """[S, 1, G, D] -> float32 [G, S, D]."""
    parted = x_SGD.squeeze(1).transpose(0, 1)
    return room(f"attention {name}", *parted.shape).copy_(parted)


def _tokens_first(x_GMD: Tensor, like: Tensor) -> Tensor:
    """[G, L * Q, D] -> a new tensor [L, 1, G * Q, D] in the dtype of `like`."""
    out = torch.empty(like.shape, dtype=like.dtype)
    out.squeeze(1).unflatten(1, (len(x_GMD), -1)).copy_(x_GMD.unflatten(1, (len(like), -1)).transpose(0, 1))
    return out


def _view(whole: Tensor, *shape: int) -> Tensor:
    return whole[: shape[0] * shape[1] * shape[2]].view(shape)

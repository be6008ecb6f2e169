"""Causal attention by segment on a CPU, forward and backward, as matrix products over blocks of queries that fit its caches.

torch's own CPU kernel multiplies in float32 through small tiles and has no way to say "these queries are the last of those
keys" but a mask; here each block of queries meets just the keys it may see. Scores and probabilities are float32, whatever the
inputs are, and are computed again in the backward pass instead of being kept (Dao et al. 2022, sections 3.1 and B.2).

Legend: L queries, S keys, G key/value heads, Q query heads of each, D head size; B the queries of a block, those of all heads
of a group behind one another, token by token, and E their keys.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.policy.products import rounding_allowed
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
        out, work = torch.empty(query.shape, dtype=query.dtype), _Work.of(query, key, runs, scale)
        with _products(query.dtype):
            for run in runs:
                k_GED, v_GED = _keys("k", key, run), _keys("v", value, run)
                for block, num_keys in _blocks(run):
                    p_GBE = work.probabilities(work.scaled_query(query, block), _first(k_GED, num_keys))
                    out_GBD = torch.bmm(p_GBE, _first(v_GED, num_keys), out=work.block("out", block))
                    work.tokens_first(out, block).copy_(out_GBD.view(work.grouped(block)))
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        dq, grad, work = torch.empty_like(query), grads[0].view(query.shape), _Work.of(query, key, ctx.runs, ctx.scale)
        dk_SGD, dv_SGD = (room(f"attention {name}", *x.squeeze(1).shape).zero_() for name, x in (("dk", key), ("dv", value)))
        with _products(query.dtype):
            for run in ctx.runs:
                k_GED, v_GED = _keys("k", key, run), _keys("v", value, run)
                dk_GED, dv_GED = (room(f"attention {name} of run", *k_GED.shape) for name in ("dk", "dv"))
                for block, num_keys in reversed(_blocks(run)):  # the last sees all keys, the others add to the first of them
                    q_GBD, grad_GBD = work.scaled_query(query, block), work.copied("grad", grad, block)
                    seen_k, seen_v = _first(k_GED, num_keys), _first(v_GED, num_keys)
                    p_GBE = work.probabilities(q_GBD, seen_k)
                    _add_product(dv_GED, p_GBE.mT, grad_GBD)
                    ds_GBE = work.score_gradients(grad_GBD, seen_v, p_GBE)
                    _add_product(dk_GED, ds_GBE.mT, q_GBD)
                    dq_GBD = torch.bmm(ds_GBE, seen_k, out=work.block("out", block))
                    work.tokens_first(dq, block).copy_(dq_GBD.mul_(ctx.scale).view(work.grouped(block)))
                _add_seen(dk_SGD, dk_GED, run)
                _add_seen(dv_SGD, dv_GED, run)
        dk, dv = (torch.empty_like(x).copy_(total[:, None]) for total, x in ((dk_SGD, key), (dv_SGD, value)))
        return dq, dk, dv, None, None


@dataclass(frozen=True)
class _Work:
    """Room for one block: its queries, its scores and their gradients; and the part of them that causality hides."""

    scale: float
    num_groups: int
    per_group: int
    head_size: int
    scores: Tensor
    gradients: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, runs: Sequence[Run], scale: float) -> _Work:
        num_groups = key.shape[2]
        per_group = query.shape[2] // num_groups
        size = num_groups * BLOCK * per_group * max((_num_keys(run) for run in runs), default=0)
        scores, gradients = room("scores", size), room("score gradients", size)
        return cls(scale, num_groups, per_group, query.shape[3], scores, gradients, _hidden(per_group))

    def block(self, name: str, block: slice) -> Tensor:
        """[G, B, D] for the queries of a block."""
        return room(f"attention {name}", self.num_groups, (block.stop - block.start) * self.per_group, self.head_size)

    def grouped(self, block: slice) -> tuple[int, int, int, int]:
        """The shape of [G, B, D] with tokens and the heads of a group apart."""
        return self.num_groups, block.stop - block.start, self.per_group, self.head_size

    def tokens_first(self, x: Tensor, block: slice) -> Tensor:
        """A block of `x` [L, 1, G * Q, D] in the order of `grouped`."""
        return x[block].squeeze(1).unflatten(1, (self.num_groups, self.per_group)).transpose(0, 1)

    def copied(self, name: str, x: Tensor, block: slice) -> Tensor:
        """A block of `x` [L, 1, G * Q, D] as float32 [G, B, D]."""
        copy_GBD = self.block(name, block)
        copy_GBD.view(self.grouped(block)).copy_(self.tokens_first(x, block))
        return copy_GBD

    def scaled_query(self, query: Tensor, block: slice) -> Tensor:
        """A block of the queries, scaled, as float32 [G, B, D]."""
        return self.copied("q", query, block).mul_(self.scale)

    def probabilities(self, q_GBD: Tensor, k_GED: Tensor) -> Tensor:
        """softmax of the scores [G, B, E] of scaled queries, the block's own keys seen causally; valid until the next call."""
        s_GBE = _view(self.scores, len(q_GBD), q_GBD.shape[1], k_GED.shape[1])
        torch.bmm(q_GBD, k_GED.mT, out=s_GBE)
        num_own = q_GBD.shape[1] // self.per_group
        s_GBE[:, :, -num_own:] += self.hidden[: q_GBD.shape[1], :num_own]
        return torch.softmax(s_GBE, -1, out=s_GBE)

    def score_gradients(self, grad_GBD: Tensor, v_GED: Tensor, p_GBE: Tensor) -> Tensor:
        """The gradient [G, B, E] of the scores: p * (dp - sum(p * dp)), where dp = grad @ v."""
        dp_GBE = torch.bmm(grad_GBD, v_GED.mT, out=_view(self.gradients, *p_GBE.shape))
        return torch.ops.aten._softmax_backward_data.out(dp_GBE, p_GBE, -1, torch.float32, grad_input=dp_GBE)


@functools.cache
def _hidden(per_group: int) -> Tensor:
    """-inf where one of BLOCK queries, each `per_group` times, must not see one of their own keys; else 0."""
    return torch.full((BLOCK, BLOCK), -torch.inf).triu_(1).repeat_interleave(per_group, dim=0)


@contextlib.contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Products as fast as `dtype` allows, of calls none of which names a device: a mode costs a microsecond a call."""
    with rounding_allowed(dtype), torch._C.DisableTorchFunction():
        yield


def _blocks(run: Run) -> list[tuple[slice, int]]:
    """(some of the run's queries, how many of its keys they see), in order."""
    first = run.queries.start
    before = _num_keys(run) - (run.queries.stop - first)
    blocks = []
    for start in range(first, run.queries.stop, BLOCK):
        stop = min(run.queries.stop, start + BLOCK)
        blocks.append((slice(start, stop), before + stop - first))
    return blocks


def _num_keys(run: Run) -> int:
    return sum(part.stop - part.start for part in run.keys)


def _keys(name: str, x: Tensor, run: Run) -> Tensor:
    """The keys of `run` out of [S, 1, G, D] as float32 [G, E, D]."""
    keys_GED = room(f"attention {name}", x.shape[2], _num_keys(run), x.shape[3])
    start = 0
    for part in run.keys:
        stop = start + part.stop - part.start
        keys_GED[:, start:stop].copy_(x[part].squeeze(1).transpose(0, 1))
        start = stop
    return keys_GED


def _first(x_GED: Tensor, num_keys: int) -> Tensor:
    """The first of the keys, in memory of their own: a product of a part is one of a copy of it, made each time."""
    return x_GED if num_keys == x_GED.shape[1] else x_GED[:, :num_keys].contiguous()


def _add_product(total_GED: Tensor, a_GEB: Tensor, b_GBD: Tensor) -> None:
    """Add a @ b to the first keys of `total`, or be it all of them: set it."""
    if a_GEB.shape[1] == total_GED.shape[1]:
        torch.bmm(a_GEB, b_GBD, out=total_GED)
    else:
        total_GED[:, : a_GEB.shape[1]] += torch.bmm(a_GEB, b_GBD)


def _add_seen(total_SGD: Tensor, run_GED: Tensor, run: Run) -> None:
    """Add what `_keys` put together back to where it came from."""
    start = 0
    for part in run.keys:
        stop = start + part.stop - part.start
        total_SGD[part] += run_GED[:, start:stop].transpose(0, 1)
        start = stop


def _view(whole: Tensor, *shape: int) -> Tensor:
    return whole[: shape[0] * shape[1] * shape[2]].view(shape)

"""Attention over packed pairs on a CPU, forward and backward, as matrix products over blocks of queries that fit its caches.

torch's own CPU kernel multiplies in float32 through small tiles and has no way to say "these queries are the last of those
keys" but a mask; here each block of queries meets just the keys it may see. Scores and probabilities are float32, whatever the
inputs are, and are computed again in the backward pass instead of being kept (Dao et al. 2022, sections 3.1 and B.2).

Legend: L queries, S keys, G key/value heads, Q query heads of each, D head size; B the queries of a block, those of all heads
of a group behind one another, token by token, and E their keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.scores import Scores
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.segments import PackedTokens
from nemotron_dpo.kernels.torch_ops.block_plan import AttentionPlan, plan_of
from nemotron_dpo.kernels.torch_ops.float32_matmul import rounding_allowed
from nemotron_dpo.kernels.torch_ops.prepared_runs import prepared


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedTokens, scores: Scores, sinks_N: Tensor | None = None
) -> Tensor:
    """Attention [L, 1, G * Q * D] of query [L, 1, G * Q, D] over key and value [S, 1, G, D], as `Kernels.attend`."""
    sinks = None if sinks_N is None else sinks_N.float()
    return _Attend.apply(query, key, value, sinks, plan_of(row, scores.window), scores)  # type: ignore[return-value] - torch does not type Function.apply


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks_N: Tensor | None, plan: AttentionPlan, scores: Scores
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, sinks_N)
        ctx.plan, ctx.scores = plan, scores
        out = torch.empty(query.shape, dtype=query.dtype)
        with _products(query.dtype):
            q_GLQD, out_GLQD = (_heads_first(x, key.shape[2]) for x in (query, out))
            for run in prepared(plan, *q_GLQD.shape[::2], query.shape[3], scores.softcap is not None):
                run.load(key, value, scores.scale)
                for block in run.blocks:
                    block.q_GTQD.copy_(q_GLQD[:, block.queries])
                    p_GBE, _ = block.probabilities(block.seen(run.k_GED), scores.softcap, sinks_N)
                    torch.bmm(p_GBE, block.seen(run.v_GED), out=block.out_GBD)
                    out_GLQD[:, block.queries].copy_(block.out_GTQD)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks_N = ctx.saved_tensors
        dsinks_N = None if sinks_N is None else torch.zeros_like(sinks_N)
        scores: Scores = ctx.scores
        dq, grad = torch.empty_like(query), grads[0].view(query.shape)
        dk_SGD, dv_SGD = (scratch(f"attention {name}", *x.squeeze(1).shape).zero_() for name, x in (("dk", key), ("dv", value)))
        with _products(query.dtype):
            q_GLQD, dq_GLQD, grad_GLQD = (_heads_first(x, key.shape[2]) for x in (query, dq, grad))
            for run in prepared(ctx.plan, *q_GLQD.shape[::2], query.shape[3], scores.softcap is not None):
                run.load(key, value, scores.scale)
                for block in reversed(run.blocks):  # the last sees all keys, the others add to the first of them
                    block.q_GTQD.copy_(q_GLQD[:, block.queries])
                    block.grad_GTQD.copy_(grad_GLQD[:, block.queries])
                    seen_k = block.seen(run.k_GED)
                    p_GBE, sink_GB = block.probabilities(seen_k, scores.softcap, sinks_N)
                    block.add_product(run.dv_GED, p_GBE, block.grad_GBD)
                    ds_GBE, mean_GB = block.score_gradients(block.seen(run.v_GED), scores.softcap, sink_GB)
                    if dsinks_N is not None and mean_GB is not None:
                        dsinks_N -= block.of_heads(mean_GB)
                    block.add_product(run.dk_GED, ds_GBE, block.q_GBD)
                    torch.bmm(ds_GBE, seen_k, out=block.out_GBD)
                    dq_GLQD[:, block.queries].copy_(block.out_GTQD)
                run.add_to(dk_SGD, run.dk_GED)
                run.add_to(dv_SGD, run.dv_GED)
            dk_SGD.mul_(scores.scale)
        dk, dv = (torch.empty_like(x).copy_(total[:, None]) for total, x in ((dk_SGD, key), (dv_SGD, value)))
        return dq, dk, dv, dsinks_N, None, None


@contextlib.contextmanager
def _products(dtype: torch.dtype) -> Iterator[None]:
    """Products as fast as `dtype` allows, of calls none of which names a device: a mode costs a microsecond a call."""
    with rounding_allowed(dtype), torch._C.DisableTorchFunction():
        yield


def _heads_first(x: Tensor, num_groups: int) -> Tensor:
    """[L, 1, G * Q, D] seen as [G, L, Q, D]."""
    return x.squeeze(1).unflatten(1, (num_groups, -1)).transpose(0, 1)

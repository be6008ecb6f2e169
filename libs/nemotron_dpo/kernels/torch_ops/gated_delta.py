"""The gated delta rule by torch's operations, all chunks of a row at once (Yang, Kautz and Hatamizadeh 2024, section 3.3).

With the state h [K, D] of a head, zero before the first token of a path, a token computes
    h = exp(g) * h,   h = h + k (beta * (v - h^T k))^T,   y = h^T q.
What a chunk's tokens write solves a triangular system, as each takes off what those before it wrote; it is linear in the state
that the chunk begins with. Sums are in float32, or in float64 where values are. The backward pass keeps nothing but inputs: it
computes all again and follows that back.

Legend: S packed tokens, N = G * H value heads, of which H share each of G heads of queries and keys, D value size, K key size;
M chunks, Q tokens of a chunk, P inner chunks, W chunks with a parent, L chunks of one depth.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.torch_ops.chunk_layout import Layout, layout_of
from nemotron_dpo.kernels.torch_ops.float32_matmul import tf32_allowed


def gated_delta(q_SGK: Tensor, k_SGK: Tensor, v_SND: Tensor, g_SN: Tensor, beta_SN: Tensor, chunks: Chunks) -> Tensor:
    """As `Kernels.gated_delta`."""
    return _GatedDelta.apply(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks)  # type: ignore[return-value] - torch does not type it


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> Tensor:
        ctx.save_for_backward(q, k, v, g, beta)
        ctx.chunks = chunks
        return _computed(q, k, v, g, beta, chunks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        q, k, v, g, beta = of
        with torch.enable_grad():
            y = _computed(q, k, v, g, beta, ctx.chunks)
        return *torch.autograd.grad(y, of, grads[0], allow_unused=True, materialize_grads=True), None


@dataclass(frozen=True)
class _Batch:
    """A row's chunks, zero behind a chunk's last token. logs: the sum of g up to each token, float64 as in mamba2.

    rates: beta. within: what is left at each token of those up to it.
    """

    layout: Layout
    q_MGQK: Tensor
    k_MGQK: Tensor
    v_MGHQD: Tensor
    rates_MGHQ1: Tensor
    logs_MGHQ1: Tensor
    within_MGHQQ: Tensor

    def decayed(self, logs: Tensor) -> Tensor:
        return logs.exp().to(self.v_MGHQD.dtype)


def _computed(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> Tensor:
    batch = _batch_of(q, k, v, g, beta, chunks)
    followers = batch.layout.followers
    with tf32_allowed(v):
        own, of_state = _solved(batch)
        states_WGHKD = _states(batch, own, of_state, chunks)
        later = own[followers] - of_state @ states_WGHKD
        written = torch.cat((own[: followers.start], later, own[followers.stop :]))
        y_MGHQD = (batch.within_MGHQQ * (batch.q_MGQK @ batch.k_MGQK.mT)[:, :, None]) @ written
        read = batch.decayed(batch.logs_MGHQ1[followers]) * (batch.q_MGQK[followers][:, :, None] @ states_WGHKD)
    y_MGHQD = torch.cat((y_MGHQD[: followers.start], y_MGHQD[followers] + read, y_MGHQD[followers.stop :]))
    return _Spread.apply(y_MGHQD.permute(0, 3, 1, 2, 4).flatten(2, 3), batch.layout).to(v.dtype)  # type: ignore[union-attr] - torch does not type it


def _batch_of(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> _Batch:
    layout, groups = layout_of(chunks, len(v), v.device), k.shape[1]
    dtype = torch.float64 if v.dtype is torch.float64 else torch.float32
    q_MQGK, k_MQGK, v_MQND, g_MQN, rates_MQN = (_Gather.apply(x, layout).to(dtype) for x in (q, k, v, g, beta))  # type: ignore[union-attr] - torch does not type it
    logs_MGHQ = g_MQN.double().cumsum(1).unflatten(2, (groups, -1)).permute(0, 2, 3, 1)
    rates_MGHQ = rates_MQN.unflatten(2, (groups, -1)).permute(0, 2, 3, 1)
    v_MGHQD = v_MQND.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    high = logs_MGHQ.to(dtype)
    low = (logs_MGHQ - high).to(dtype)
    between = (high[..., :, None] - high[..., None, :]) + (low[..., :, None] - low[..., None, :])
    behind = torch.ones(between.shape[-2:], dtype=torch.bool, device=v.device).triu(1)
    within = between.masked_fill(behind, -torch.inf).exp()
    q_MGQK, k_MGQK = q_MQGK.transpose(1, 2), k_MQGK.transpose(1, 2)
    return _Batch(layout, q_MGQK, k_MGQK, v_MGHQD, rates_MGHQ[..., None], logs_MGHQ[..., None], within)


def _solved(batch: _Batch) -> tuple[Tensor, Tensor]:
    """What tokens write where a chunk begins with zero [M, G, H, Q, D], and how much less by its state [W, G, H, Q, K]."""
    followers = batch.layout.followers
    scores_MGHQQ = (batch.k_MGQK @ batch.k_MGQK.mT)[:, :, None] * batch.within_MGHQQ * batch.rates_MGHQ1
    keys_WGHQK = batch.k_MGQK[followers][:, :, None] * batch.decayed(batch.logs_MGHQ1[followers]) * batch.rates_MGHQ1[followers]
    own, of_state = (
        torch.linalg.solve_triangular(system, values, upper=False, unitriangular=True)
        for system, values in ((scores_MGHQQ, batch.v_MGHQD * batch.rates_MGHQ1), (scores_MGHQQ[followers], keys_WGHQK))
    )
    return own, of_state


def _states(batch: _Batch, own: Tensor, of_state: Tensor, chunks: Chunks) -> Tensor:
    """The state that each chunk with a parent begins with: [W, G, H, K, D]."""
    layout = batch.layout
    logs, first = batch.logs_MGHQ1[: layout.num_inner], layout.followers.start
    keys_PGHKQ = (batch.k_MGQK[: layout.num_inner][:, :, None] * batch.decayed(logs[..., -1:, :] - logs)).mT
    across = batch.decayed(logs[..., -1:, :])
    branches, ends, starts = _branches(chunks, own.device), [], []
    for level, branch in zip(layout.levels, branches, strict=False):
        mine, values = slice(level.start, level.stop), own[level.start : level.stop]
        if level.start < first:
            ends.append(keys_PGHKQ[mine] @ values)
            continue
        starts.append(_Branch.apply(ends[-1], *branch))
        values = values - of_state[level.start - first : level.stop - first] @ starts[-1]
        ends.append(across[mine] * starts[-1] + keys_PGHKQ[mine] @ values)
    of_leaves = [_Branch.apply(torch.cat(ends), *branches[-1])] if ends else []
    return torch.cat([own.new_zeros(0, *own.shape[1:3], keys_PGHKQ.shape[3], own.shape[4]), *starts, *of_leaves])


@functools.lru_cache(maxsize=8)
def _branches(chunks: Chunks, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
    """Of the inner chunks of each depth the parent, by its place in the depth before, and of each parent its children, padded
    with their number; at last of the leaves with a parent, by its place among all inner chunks."""
    layout = layout_of(chunks, chunks.num_tokens, torch.device("cpu"))
    parents, first, branches = layout.parents_W.tolist(), layout.followers.start, []
    for place, level in enumerate(layout.levels):
        before = layout.levels[place - 1] if place else level
        mine = parents[level.start - first : level.stop - first] if place else []
        branches.append(_branch([parent - before.start for parent in mine], before.stop - before.start, device))
    branches.append(_branch(parents[layout.num_inner - first :], layout.num_inner, device))
    return tuple(branches)


def _branch(parents: list[int], num_parents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    children: list[list[int]] = [[] for _ in range(num_parents)]
    for child, parent in enumerate(parents):
        children[parent].append(child)
    most = max(map(len, children), default=0)
    padded = [of + [len(parents)] * (most - len(of)) for of in children]
    tables = torch.tensor(parents, dtype=torch.long), torch.tensor(padded, dtype=torch.long).view(num_parents, most)
    return tables[0].to(device), tables[1].to(device)


class _Branch(torch.autograd.Function):
    """Rows of parents for their children; gradients are gathered, so added up in one order."""

    @staticmethod
    def forward(ctx: Any, of_parents: Tensor, parents: Tensor, children: Tensor) -> Tensor:
        ctx.children = children
        return of_parents.index_select(0, parents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        padded = torch.cat((grads[0], grads[0].new_zeros(1, *grads[0].shape[1:])))
        return padded.index_select(0, ctx.children.flatten()).unflatten(0, ctx.children.shape).sum(1), None, None


class _Gather(torch.autograd.Function):
    """[S, ...] -> [M, Q, ...], zero behind a chunk's last token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.gather(x).mul_(_is_token(layout, x.dim()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.spread(grads[0]), None


class _Spread(torch.autograd.Function):
    """[M, Q, ...] -> [S, ...], zero for tokens in no chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return layout.spread(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.gather(grads[0]).mul_(_is_token(ctx.layout, grads[0].dim())), None


def _is_token(layout: Layout, num_dimensions: int) -> Tensor:
    return layout.is_token_MQ.view(*layout.is_token_MQ.shape, *(num_dimensions - 1) * [1])

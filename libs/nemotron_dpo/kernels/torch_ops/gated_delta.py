"""The gated delta rule by torch's products, all chunks of a row at once (Yang, Kautz and Hatamizadeh 2024, section 3.3).

With the state h [K, D] of a head, zero before the first token of a path, a token computes
    h = exp(g) * h,   h = h + k w^T with w = beta * (v - h^T k),   y = h^T q.
What a chunk's tokens write, w, solves a triangular system, as each takes off what those before it wrote:
    (1 + A) w = beta * (v - decay * h^T k),   A = beta * within * (k k^T) below the diagonal,
with h the state that the chunk begins with, `decay` what is left of it at each token, `within` what is left at each token of
those before it. The inverse of 1 + A is made once, of all chunks. Sums are in float32, or in float64 where values are. The
backward pass (gated_delta_backward) keeps nothing but inputs.

Legend: S packed tokens, N value heads, of which N / G share each of G heads of queries and keys, D value size, K key size;
M chunks, Q tokens of a chunk, W chunks with a parent, L chunks of one depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.torch_ops.chunk_layout import ChunkLayout, layout_of
from nemotron_dpo.kernels.torch_ops.float32_matmul import tf32_allowed

_SOLVED = 16  # rows of a triangular system that is solved; of larger ones the halves are


@dataclass(frozen=True)
class DeltaChunks:
    """A row's chunks, zero behind a chunk's last token.

    rates: beta. decays: what is left at each token of the state before the chunk. left: what is left of each token at the
    chunk's end, whole: of the state before it. within: as above, zero above the diagonal. met: within * (k k^T). inverse: of
    1 + A.
    """

    layout: ChunkLayout
    num_groups: int
    q_MNQK: Tensor
    k_MNQK: Tensor
    v_MNQD: Tensor
    rates_MNQ1: Tensor
    decays_MNQ1: Tensor
    left_MNQ1: Tensor
    whole_MN11: Tensor
    within_MNQQ: Tensor
    met_MNQQ: Tensor
    inverse_MNQQ: Tensor

    def keys_taken(self) -> Tensor:
        """What a token takes of each row of the state before its chunk off what it writes: [W, N, Q, K]."""
        of = self.layout.followers
        return self.k_MNQK[of] * (self.rates_MNQ1[of] * self.decays_MNQ1[of])

    def followers_of(self, place: slice) -> tuple[slice, slice]:
        """Of the chunks `place` in M those with a parent, in M and in W."""
        of = self.layout.followers
        start = min(max(place.start, of.start), of.stop)
        stop = max(min(place.stop, of.stop), start)
        return slice(start, stop), slice(start - of.start, stop - of.start)


def gated_delta(q_SGK: Tensor, k_SGK: Tensor, v_SND: Tensor, g_SN: Tensor, beta_SN: Tensor, chunks: Chunks) -> Tensor:
    """As `Kernels.gated_delta`."""
    return _GatedDelta.apply(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks)  # type: ignore[return-value] - torch does not type it


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> Tensor:
        ctx.save_for_backward(q, k, v, g, beta)
        ctx.chunks = chunks
        with tf32_allowed(v):
            batch = batch_of(q, k, v, g, beta, chunks)
            y_MNQD = _read(batch, *written(batch))
        return batch.layout.spread(y_MNQD.transpose(1, 2)).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from nemotron_dpo.kernels.torch_ops.gated_delta_backward import gradients

        q, k, v, g, beta = ctx.saved_tensors
        return *gradients(grads[0], q, k, v, g, beta, ctx.chunks), None


def batch_of(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> DeltaChunks:
    """The batch, with all that does not depend on states."""
    layout, heads = layout_of(chunks, len(v), v.device), v.shape[1] // k.shape[1]
    dtype = torch.float64 if v.dtype is torch.float64 else torch.float32
    q_MGQK, k_MGQK, v_MNQD = (tokens_of(layout, x, dtype) for x in (q, k, v))
    g_MNQ1, rates_MNQ1 = (tokens_of(layout, x[..., None], kind) for x, kind in ((g, torch.float64), (beta, dtype)))
    logs_MNQ1 = g_MNQ1.cumsum(2)
    high = logs_MNQ1.to(dtype)
    low = (logs_MNQ1 - high).to(dtype)
    between = (high - high.mT).add_(low - low.mT)  # differences of float64 without its costs
    behind = torch.ones(between.shape[-2:], dtype=torch.bool, device=v.device).triu(1)
    within = between.masked_fill_(behind, -torch.inf).exp_()
    met = (within.unflatten(1, (-1, heads)) * (k_MGQK @ k_MGQK.mT)[:, :, None]).flatten(1, 2)
    decays, left = logs_MNQ1.exp().to(dtype), (logs_MNQ1[:, :, -1:] - logs_MNQ1).exp().to(dtype)
    q_MNQK, k_MNQK = (x.repeat_interleave(heads, 1) if heads > 1 else x for x in (q_MGQK, k_MGQK))
    inverse = _inverse((met * rates_MNQ1).flatten(0, 1)).view_as(met)
    return DeltaChunks(
        layout, k.shape[1], q_MNQK, k_MNQK, v_MNQD, rates_MNQ1, decays, left, decays[:, :, -1:], within, met, inverse
    )


def tokens_of(layout: ChunkLayout, x: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, N, ...] -> [M, N, Q, ...], zero behind a chunk's last token."""
    mask = layout.is_token_MQ[(slice(None), None, slice(None), *(x.dim() - 2) * (None,))]
    return layout.gather(x).transpose(1, 2).to(dtype).contiguous().mul_(mask)


def _inverse(below: Tensor) -> Tensor:
    """Of 1 + `below` [..., Q, Q], of which what is below the diagonal counts."""
    size = below.shape[-1]
    if size <= _SOLVED:
        one = torch.eye(size, dtype=below.dtype, device=below.device).expand_as(below)
        return torch.linalg.solve_triangular(below, one, upper=False, unitriangular=True)
    half = size // 2
    first, last = _inverse(below[:, :half, :half]), _inverse(below[:, half:, half:])
    whole = torch.zeros_like(below)
    whole[:, :half, :half], whole[:, half:, half:] = first, last
    whole[:, half:, :half] = (last @ below[:, half:, :half] @ first).neg_()
    return whole


def written(batch: DeltaChunks) -> tuple[Tensor, Tensor]:
    """What each token writes [M, N, Q, D], and the state that each chunk with a parent begins with [W, N, K, D]."""
    layout, values_MNQD = batch.layout, batch.v_MNQD * batch.rates_MNQ1
    w_MNQD, size = torch.empty_like(values_MNQD), (batch.k_MNQK.shape[-1], values_MNQD.shape[-1])
    starts_WNKD = w_MNQD.new_empty(len(layout.parents_W), w_MNQD.shape[1], *size)
    ends = w_MNQD.new_empty(layout.num_inner, *starts_WNKD.shape[1:])
    keys_WNQK = batch.keys_taken()
    for place in (*(slice(level.start, level.stop) for level in layout.levels), slice(layout.num_inner, len(w_MNQD))):
        inside, mine = batch.followers_of(place)
        starts_WNKD[mine] = ends[layout.parents_W[mine]]
        add_product(values_MNQD[inside], keys_WNQK[mine], starts_WNKD[mine], -1)
        add_product(w_MNQD[place], batch.inverse_MNQQ[place], values_MNQD[place], is_first=True)
        if place.stop <= layout.num_inner:
            add_product(ends[place], (batch.k_MNQK[place] * batch.left_MNQ1[place]).mT, w_MNQD[place], is_first=True)
            ends[inside].addcmul_(batch.whole_MN11[inside], starts_WNKD[mine])
    return w_MNQD, starts_WNKD


def add_product(total: Tensor, a: Tensor, b: Tensor, times: float = 1, *, is_first: bool = False) -> None:
    """total += times * a @ b, or with `is_first` total = times * a @ b, of tensors [M, N, ., .]; `total` is contiguous."""
    total.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1), beta=0 if is_first else 1, alpha=times)


def scores(batch: DeltaChunks) -> Tensor:
    """How much each token reads of what each before it wrote [M, N, Q, Q]."""
    return (batch.q_MNQK @ batch.k_MNQK.mT).mul_(batch.within_MNQQ)


def _read(batch: DeltaChunks, w_MNQD: Tensor, starts_WNKD: Tensor) -> Tensor:
    of = batch.layout.followers
    y_MNQD = scores(batch) @ w_MNQD
    y_MNQD[of].addcmul_(batch.decays_MNQ1[of], batch.q_MNQK[of] @ starts_WNKD)
    return y_MNQD

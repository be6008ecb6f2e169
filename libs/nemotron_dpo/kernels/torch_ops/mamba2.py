"""The recurrence of Mamba-2 by torch's products, all chunks of a row at once (Dao and Gu 2024, section 6 and listing 1).

With the state h [K, D] of a head, zero before the first token of a path, a token computes
    h = exp(dt * A) * h + dt * B x^T,   y = h^T C + D * x.
A chunk takes the state that its parent ends with; states go from depth to depth, all chunks of one depth at once. Products and
sums are in float32, or in float64 where x is; on a GPU the products of bfloat16 tensors round what they read to TF32.

Legend: S packed tokens, N = G * H heads, of G groups of H, D head size, K state size; M chunks, Q tokens of a chunk, P inner
chunks, W chunks with a parent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.torch_ops.chunk_layout import ChunkLayout, layout_of
from nemotron_dpo.kernels.torch_ops.float32_matmul import tf32_allowed


@dataclass(frozen=True)
class MambaChunks:
    """A row's chunks. steps: dt, zero behind a chunk's last token. inputs: dt * x. logs: the sum of dt * A up to each token.

    The logarithms are float64: a token that forgets all makes them large, and the differences behind it are as small as ever.
    """

    layout: ChunkLayout
    x_MGQHD: Tensor
    steps_MGQH1: Tensor
    inputs_MGQHD: Tensor
    logs_MGQH1: Tensor
    B_MGQK: Tensor
    C_MGQK: Tensor

    def since_start(self) -> Tensor:
        """What is left at each token of the state at the chunk's start, for chunks with a parent: [W, G, Q, H, 1]."""
        return self._of_logs(self.logs_MGQH1[self.layout.followers])

    def until_end(self) -> Tensor:
        """What is left of each token at the chunk's end, for inner chunks: [P, G, Q, H, 1]."""
        logs = self.logs_MGQH1[: self.layout.num_inner]
        return self._of_logs(logs[:, :, -1:] - logs)

    def across(self) -> Tensor:
        """What is left at the chunk's end of the state at its start, for inner chunks: [P, G, 1, H, 1]."""
        return self._of_logs(self.logs_MGQH1[: self.layout.num_inner, :, -1:])

    def decays(self) -> Tensor:
        """What is left at each token of every token up to it: [M, G, H, Q, Q], zero for those behind."""
        logs_MGHQ = self.logs_MGQH1.squeeze(-1).transpose(2, 3).contiguous()
        high = logs_MGHQ.to(self.x_MGQHD.dtype)
        low = (logs_MGHQ - high).to(high.dtype)
        between = (high[..., :, None] - high[..., None, :]).add_(low[..., :, None]).sub_(low[..., None, :])
        behind = torch.ones(between.shape[-2:], dtype=torch.bool, device=between.device).triu_(1)
        return between.masked_fill_(behind, -torch.inf).exp_()

    def _of_logs(self, logs: Tensor) -> Tensor:
        return logs.exp().to(self.x_MGQHD.dtype)

    def scores(self) -> Tensor:
        """C of each token by B of each: [M, G, 1, Q, Q]."""
        return (self.C_MGQK @ self.B_MGQK.mT)[:, :, None]


def batch_of(x_SND: Tensor, dt_SN: Tensor, A_N: Tensor, B_SGK: Tensor, C_SGK: Tensor, chunks: Chunks) -> MambaChunks:
    """Gather a row's chunks."""
    layout = layout_of(chunks, len(x_SND), x_SND.device)
    dtype = torch.float64 if x_SND.dtype is torch.float64 else torch.float32
    num_groups, heads = B_SGK.shape[1], x_SND.shape[1] // B_SGK.shape[1]
    x_MGQHD = by_group(layout.gather(x_SND).unflatten(2, (num_groups, heads))).to(dtype)
    steps = layout.gather(dt_SN).to(dtype).mul_(layout.is_token_MQ[..., None])
    steps_MGQH1 = by_group(steps.unflatten(2, (num_groups, heads)))[..., None]
    logs_MGQH1 = (steps_MGQH1.double() * A_N.double().view(num_groups, 1, heads, 1)).cumsum(2)
    B_MGQK, C_MGQK = (by_group(layout.gather(of)).to(dtype) for of in (B_SGK, C_SGK))
    return MambaChunks(layout, x_MGQHD, steps_MGQH1, x_MGQHD * steps_MGQH1, logs_MGQH1, B_MGQK, C_MGQK)


def scan(x_SND: Tensor, dt_SN: Tensor, A_N: Tensor, B_SGK: Tensor, C_SGK: Tensor, D_N: Tensor, chunks: Chunks) -> Tensor:
    """As `Kernels.scan`."""
    batch = batch_of(x_SND, dt_SN, A_N, B_SGK, C_SGK, chunks)
    with tf32_allowed(x_SND):
        y_MGQHD = _mixed(batch)
        followers = batch.layout.followers
        y_MGQHD[followers] += read_states(batch, states_before(batch)) * batch.since_start()
    y_MGQHD.addcmul_(batch.x_MGQHD, D_N.to(y_MGQHD.dtype).view(B_SGK.shape[1], 1, -1, 1))
    return batch.layout.spread(by_token(y_MGQHD)).to(x_SND.dtype)


def _mixed(batch: MambaChunks) -> Tensor:
    """What each token takes of its chunk's inputs: [M, G, Q, H, D]."""
    mixing_MGHQQ = batch.decays().mul_(batch.scores())
    return (mixing_MGHQQ @ batch.inputs_MGQHD.transpose(2, 3)).transpose(2, 3).contiguous()


def states_before(batch: MambaChunks) -> Tensor:
    """The state that each chunk with a parent starts with: [W, G, K, H, D]."""
    layout, num_inner = batch.layout, batch.layout.num_inner
    inputs = batch.inputs_MGQHD[:num_inner] * batch.until_end()
    states_PGKHD = (batch.B_MGQK[:num_inner].mT @ inputs.flatten(3)).unflatten(3, inputs.shape[3:])
    across, first = batch.across(), layout.followers.start
    for level in layout.levels[1:]:
        mine = slice(level.start, level.stop)
        before = states_PGKHD.index_select(0, layout.parents_W[level.start - first : level.stop - first])
        states_PGKHD[mine].addcmul_(across[mine], before)
    return states_PGKHD.index_select(0, layout.parents_W)


def read_states(batch: MambaChunks, states_WGKHD: Tensor) -> Tensor:
    """What each token of a chunk with a parent reads in the state at its start, undecayed: [W, G, Q, H, D]."""
    read = batch.C_MGQK[batch.layout.followers] @ states_WGKHD.flatten(3)
    return read.unflatten(3, states_WGKHD.shape[3:])


def by_group(x: Tensor) -> Tensor:
    """[M, Q, G, ...] -> [M, G, Q, ...], without gaps."""
    return x.transpose(1, 2).contiguous()


def by_token(x: Tensor) -> Tensor:
    """[M, G, Q, H, ...] -> [M, Q, N, ...]."""
    return x.transpose(1, 2).flatten(2, 3)

"""The gradient of the recurrence of Mamba-2, written out; forward values are computed again, none is kept but the inputs.

The gradient of dt * A at a token is that of every term that decays across it: of a token before it that is read at or after
it. Sums of just these terms are taken. The difference of what comes in and what goes out would be shorter, and loses the digits
of the terms that cancel.

Legend: as in mamba2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.protocol import ScanGradients
from nemotron_dpo.kernels.torch_ops.chunk_layout import ChunkLayout
from nemotron_dpo.kernels.torch_ops.float32_matmul import tf32_allowed
from nemotron_dpo.kernels.torch_ops.mamba2 import MambaChunks, batch_of, by_group, by_token, read_states, states_before


def scan_backward(
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
    batch = batch_of(x_SND, dt_SN, A_N, B_SGK, C_SGK, chunks)
    layout, groups = batch.layout, B_SGK.shape[1]
    grad = layout.gather(grad_SND).unflatten(2, (groups, -1)).to(batch.x_MGQHD.dtype)
    grad_MGQHD = by_group(grad.mul_(layout.is_token_MQ[..., None, None, None]))
    with tf32_allowed(x_SND):
        of = _within(batch, grad_MGQHD)
        _across(batch, grad_MGQHD, of)
    rates, skips = (x_N.to(grad_MGQHD.dtype).view(groups, 1, -1) for x_N in (A_N, D_N))
    ddt = (batch.x_MGQHD * of.inputs).sum(-1) + rates * of.logs
    dx = of.inputs.mul_(batch.steps_MGQH1).addcmul_(grad_MGQHD, skips[..., None])
    drates_N = (of.logs * batch.steps_MGQH1.squeeze(-1)).sum((0, 2)).flatten()
    dskips_N = (grad_MGQHD * batch.x_MGQHD).sum((0, 2, 4)).flatten()
    dx_SND, ddt_SN = (layout.spread(by_token(x)) for x in (dx, ddt))
    dB_SGK, dC_SGK = (layout.spread(x.transpose(1, 2)) for x in (of.B, of.C))
    grads = dx_SND.to(x_SND.dtype), ddt_SN.to(dt_SN.dtype), drates_N.to(A_N.dtype)
    return *grads, dB_SGK.to(B_SGK.dtype), dC_SGK.to(C_SGK.dtype), dskips_N.to(D_N.dtype)


@dataclass(frozen=True)
class _Gradients:
    """Of a batch's inputs [M, G, Q, H, D], of dt * A [M, G, Q, H], of B and C [M, G, Q, K]; added up in place."""

    inputs: Tensor
    logs: Tensor
    B: Tensor
    C: Tensor


def _within(batch: MambaChunks, grad_MGQHD: Tensor) -> _Gradients:
    """Through what tokens read of others of their chunk."""
    grad_MGHQD, inputs_MGHQD = grad_MGQHD.transpose(2, 3), batch.inputs_MGQHD.transpose(2, 3)
    decays, scores = batch.decays(), batch.scores()
    dscores_MGHQQ = (grad_MGHQD @ inputs_MGHQD.mT).mul_(decays)
    dinputs = (decays.mul_(scores).mT @ grad_MGHQD).transpose(2, 3).contiguous()
    dscores_MGQQ = dscores_MGHQQ.sum(2)
    terms = dscores_MGHQQ.mul_(scores).cumsum(-1).tril_(-1).sum(-2)  # of a token and those before, read behind it
    dlogs = torch.nn.functional.pad(terms[..., :-1], (1, 0)).transpose(2, 3).contiguous()
    return _Gradients(dinputs, dlogs, dscores_MGQQ.mT @ batch.C_MGQK, dscores_MGQQ @ batch.B_MGQK)


def _across(batch: MambaChunks, grad_MGQHD: Tensor, of: _Gradients) -> None:
    """Add what goes through the states between chunks."""
    layout, inner = batch.layout, slice(batch.layout.num_inner)
    states, since_start, until_end = states_before(batch), batch.since_start(), batch.until_end()
    read = grad_MGQHD[layout.followers] * since_start
    of.C[layout.followers] += read.flatten(3) @ states.flatten(3).mT
    of.logs[layout.followers] += (read * read_states(batch, states)).sum(-1).flip(2).cumsum(2).flip(2)
    ends = _end_gradients(batch, (batch.C_MGQK[layout.followers].mT @ read.flatten(3)).unflatten(3, read.shape[3:]))
    inputs = batch.inputs_MGQHD[inner] * until_end
    of.B[inner] += inputs.flatten(3) @ ends.flatten(3).mT
    written = (batch.B_MGQK[inner] @ ends.flatten(3)).unflatten(3, ends.shape[3:])
    of.inputs[inner] += written * until_end
    of.logs[inner, :, 1:] += (written * inputs).sum(-1).cumsum(2)[:, :, :-1]
    through = slice(layout.followers.start, layout.num_inner)  # chunks with a parent and children
    kept = (states[: layout.num_inner - layout.followers.start] * ends[through]).sum((2, 4))[:, :, None]
    of.logs[through] += kept * batch.across()[through].squeeze(-1)


def _end_gradients(batch: MambaChunks, starts_WGKHD: Tensor) -> Tensor:
    """The gradients of inner chunks' last states [P, G, K, H, D], of what each chunk's tokens say of its first state."""
    layout: ChunkLayout = batch.layout
    across, first = batch.across(), layout.followers.start
    starts = torch.cat((starts_WGKHD, starts_WGKHD.new_zeros(1, *starts_WGKHD.shape[1:])))  # the last stands for no child
    ends = starts.new_empty(layout.num_inner, *starts.shape[1:])
    for level in reversed(layout.levels):
        mine = slice(level.start, level.stop)
        of_children = starts.index_select(0, level.children_LC.flatten()).unflatten(0, level.children_LC.shape)
        torch.sum(of_children, 1, out=ends[mine])
        if level.start >= first:
            starts[level.start - first : level.stop - first].addcmul_(across[mine], ends[mine])
    return ends

"""The gradient of the gated delta rule, written out; forward values are computed again, none is kept but the inputs.

States are gone through from the leaves to the roots: the gradient of what a chunk's tokens write, w, and so of the state that
it begins with. All else follows from these of all chunks at once.

Legend: as in gated_delta; Z twice Q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.torch_ops.float32_matmul import tf32_allowed
from nemotron_dpo.kernels.torch_ops.gated_delta import DeltaChunks, add_product, batch_of, scores, tokens_of, written


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunks: Chunks) -> tuple[Tensor, ...]:
    """Of q, k, v, g and beta, each in its dtype."""
    with tf32_allowed(v):
        batch = batch_of(q, k, v, g, beta, chunks)
        w_MNQD, starts_WNKD = written(batch)
        grad_MNQD = tokens_of(batch.layout, grad, w_MNQD.dtype)
        found = _gradients(batch, grad_MNQD, w_MNQD, starts_WNKD)
    of = (q, k, v, g[..., None], beta[..., None])
    spread = (batch.layout.spread(x.transpose(1, 2)) for x in found)
    dq, dk, dv, dg, dbeta = (x.to(like.dtype) for x, like in zip(spread, of, strict=True))
    return dq, dk, dv, dg[..., 0], dbeta[..., 0]


def _gradients(batch: DeltaChunks, grad_MNQD: Tensor, w_MNQD: Tensor, starts_WNKD: Tensor) -> tuple[Tensor, ...]:
    layout, inner, of = batch.layout, slice(0, batch.layout.num_inner), batch.layout.followers
    q, k, rates, decays, left = batch.q_MNQK, batch.k_MNQK, batch.rates_MNQ1, batch.decays_MNQ1, batch.left_MNQ1
    scores_MNQQ = scores(batch)
    solved_MNQD, ends_grad = _through_states(batch, grad_MNQD, scores_MNQQ)
    dscores, q_state = grad_MNQD @ w_MNQD.mT, grad_MNQD[of] @ starts_WNKD.mT  # of q k^T with its decays, of decays * q
    k_state, k_end = (solved_MNQD[of] @ starts_WNKD.mT).neg_(), w_MNQD[inner] @ ends_grad.mT  # of k times what it has there
    dmet = (solved_MNQD @ w_MNQD.mT).neg_().tril_(-1)  # of A
    drates = (solved_MNQD * batch.v_MNQD).sum(-1, keepdim=True).add_((dmet * batch.met_MNQQ).sum(-1, keepdim=True))
    k_met = (k[of] * k_state).sum(-1, keepdim=True)
    drates[of].addcmul_(decays[of], k_met)
    dmet = dmet.mul_(rates)

    dlogs = _of_differences((dscores * scores_MNQQ).addcmul_(dmet, batch.met_MNQQ))
    dlogs[of] += decays[of] * ((q[of] * q_state).sum(-1, keepdim=True).addcmul_(rates[of], k_met))
    gone = left[inner] * (k[inner] * k_end).sum(-1, keepdim=True)
    dlogs[inner] -= gone
    dlogs[inner, :, -1:] += gone.sum(2, keepdim=True)
    followed = slice(of.start, layout.num_inner)  # inner chunks with a parent
    mine = slice(0, layout.num_inner - of.start)
    kept = (ends_grad[followed] * starts_WNKD[mine]).sum((2, 3), keepdim=True)
    dlogs[followed, :, -1:] += batch.whole_MN11[followed] * kept

    dscores, dmet = dscores.mul_(batch.within_MNQQ), dmet.mul_(batch.within_MNQQ)
    dq, dk = dscores @ k, dscores.mT @ q
    add_product(dk, dmet + dmet.mT, k)
    dq[of].addcmul_(decays[of], q_state)
    dk[of].addcmul_(rates[of] * decays[of], k_state)
    dk[inner].addcmul_(left[inner], k_end)
    dq, dk = (x.unflatten(1, (batch.num_groups, -1)).sum(2) for x in (dq, dk))
    dg = dlogs.double().flip(2).cumsum(2).flip(2)
    return dq, dk, solved_MNQD.mul_(rates), dg, drates


def _of_differences(products_MNQQ: Tensor) -> Tensor:
    """[M, N, Q, 1] of the gradients of logs, of those of the differences of logs, a row's less a column's."""
    return products_MNQQ.sum(-1, keepdim=True) - products_MNQQ.sum(-2, keepdim=True).mT


def _through_states(batch: DeltaChunks, grad_MNQD: Tensor, scores_MNQQ: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of beta * v [M, N, Q, D], and of the states at the ends of inner chunks."""
    layout, of = batch.layout, batch.layout.followers
    solved_MNQD = torch.empty_like(grad_MNQD)
    w_grad_MNQD = scores_MNQQ.mT @ grad_MNQD
    size = batch.k_MNQK.shape[-1], grad_MNQD.shape[-1]
    starts_grad = grad_MNQD.new_zeros(len(layout.parents_W) + 1, grad_MNQD.shape[1], *size)  # the last is that of no child
    add_product(starts_grad[:-1], (batch.q_MNQK[of] * batch.decays_MNQ1[of]).mT, grad_MNQD[of])
    ends_grad = grad_MNQD.new_empty(layout.num_inner, *starts_grad.shape[1:])
    keys_WNQK = batch.keys_taken()
    children = {level.start: level.children_LC for level in layout.levels}
    leaves = slice(layout.num_inner, len(grad_MNQD))
    for place in (leaves, *(slice(level.start, level.stop) for level in reversed(layout.levels))):
        inside, mine = batch.followers_of(place)
        if place is not leaves:
            ends_grad[place] = starts_grad[children[place.start]].sum(1)
            add_product(w_grad_MNQD[place], batch.k_MNQK[place] * batch.left_MNQ1[place], ends_grad[place])
            starts_grad[mine].addcmul_(batch.whole_MN11[inside], ends_grad[inside])
        add_product(solved_MNQD[place], batch.inverse_MNQQ[place].mT, w_grad_MNQD[place], is_first=True)
        add_product(starts_grad[mine], keys_WNQK[mine].mT, solved_MNQD[inside], -1)
    return solved_MNQD, ends_grad

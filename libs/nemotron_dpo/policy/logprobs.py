"""Log-probs of response tokens without the full logits: in chunks, forward and backward, vocabulary-parallel under TP.

Legend: R response tokens, C tokens of one chunk, H hidden, V this rank's share of the vocabulary.
The reduction over the vocabulary is float32 whatever the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_TOKENS = 512


def response_logps(hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, group: Any = None) -> Tensor:
    """log softmax(hidden @ weight.T)[target] for each row, float32 [R], differentiable in hidden and weight.

    `group` is the tensor-parallel process group over which the vocabulary is split in equal, ordered shares; the gradient
    of `hidden` is then this rank's part, for the caller's layer to reduce.
    """
    return _ResponseLogps.apply(hidden_RH, weight_VH, targets_R, group)  # type: ignore[return-value]


class _ResponseLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, group: Any) -> Tensor:
        local_R, mine_R = _local_targets(targets_R, weight_VH.shape[0], group)
        normalizers, logps = [], []
        for part in _chunks(len(targets_R)):
            logits_CV = (hidden_RH[part] @ weight_VH.t()).float()
            log_z_C = _logsumexp(logits_CV, group)
            picked_C = logits_CV.gather(1, local_R[part, None]).squeeze(1) * mine_R[part]
            normalizers.append(log_z_C)
            logps.append(_all_reduce(picked_C, group) - log_z_C)
        ctx.save_for_backward(hidden_RH, weight_VH, local_R, mine_R, torch.cat(normalizers))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad_R,) = grads
        hidden_RH, weight_VH, local_R, mine_R, log_z_R = ctx.saved_tensors
        grad_hidden_RH = torch.empty_like(hidden_RH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(grad_R)):
            logits_CV = (hidden_RH[part] @ weight_VH.t()).float()
            slope_CV = logits_CV.sub_(log_z_R[part, None]).exp_().mul_(-grad_R[part, None])
            slope_CV.scatter_add_(1, local_R[part, None], (grad_R[part] * mine_R[part])[:, None])
            slope_CV = slope_CV.to(weight_VH.dtype)
            grad_hidden_RH[part] = slope_CV @ weight_VH
            if grad_weight_VH is not None:  # a policy with adapters does not train it
                grad_weight_VH += slope_CV.t() @ hidden_RH[part]
        return grad_hidden_RH, None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype), None, None


def _chunks(num_tokens: int) -> list[slice]:
    """At least one chunk, be it empty: a rank may hold no response token."""
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, max(1, num_tokens), CHUNK_TOKENS)]


def _local_targets(targets_R: Tensor, share: int, group: Any) -> tuple[Tensor, Tensor]:
    """Target ids within this rank's share of the vocabulary (clamped), and 1.0 where the target lies in it."""
    if group is None or dist.get_world_size(group) == 1:
        return targets_R, torch.ones_like(targets_R, dtype=torch.float32)
    local_R = targets_R - dist.get_rank(group) * share
    mine_R = (local_R >= 0) & (local_R < share)
    return local_R.clamp(0, share - 1), mine_R.float()


def _logsumexp(logits_CV: Tensor, group: Any) -> Tensor:
    if group is None or dist.get_world_size(group) == 1:
        return logits_CV.logsumexp(1)
    highest_C = _all_reduce(logits_CV.amax(1), group, dist.ReduceOp.MAX)
    return _all_reduce((logits_CV - highest_C[:, None]).exp().sum(1), group).log() + highest_C


def _all_reduce(values: Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(values, op=op, group=group)
    return values

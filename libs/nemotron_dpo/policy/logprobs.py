"""Log-probs of response tokens without the full logits: in chunks, forward and backward, vocabulary-parallel under TP.

Legend: R response tokens, C tokens of one chunk, H hidden, V this rank's share of the vocabulary.
The reduction over the vocabulary is float32 whatever the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemotron_dpo.policy.gradients import add_product
from nemotron_dpo.policy.workspace import room

CHUNK_TOKENS = 512


def response_logps(hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, group: Any = None) -> Tensor:
    """log softmax(hidden @ weight.T)[target] for each row, float32 [R], differentiable in hidden and weight.

    `group` is the tensor-parallel process group over which the vocabulary is split in equal, ordered shares; the gradient
    of `hidden` is then this rank's part, for the caller's layer to reduce. A weight with a `main_grad` gets its gradient
    added there instead.
    """
    return _ResponseLogps.apply(hidden_RH, weight_VH, targets_R, group)  # type: ignore[return-value]


class _ResponseLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, group: Any) -> Tensor:
        local_R, mine_R = _local_targets(targets_R, weight_VH.shape[0], group)
        logps_R, share_R = torch.empty_like(mine_R), torch.zeros_like(mine_R)
        chunks = _Room(len(targets_R), weight_VH)
        for part in _chunks(len(targets_R)):
            logits_CV = chunks.logits(hidden_RH[part])
            first_C = logits_CV[:, 0].clone()
            log_p_CV = torch.log_softmax(logits_CV, 1, out=logits_CV)
            picked_C = log_p_CV.gather(1, local_R[part, None]).squeeze(1)
            if _is_split(group):
                log_z_C = first_C - log_p_CV[:, 0]  # of this rank's share of the vocabulary
                total_C = _log_sum_exp_over(log_z_C, group)
                picked_C, share_R[part] = (picked_C + log_z_C - total_C) * mine_R[part], log_z_C - total_C
            logps_R[part] = picked_C
        ctx.save_for_backward(hidden_RH, local_R, mine_R, share_R)
        ctx.weight = weight_VH
        return _all_reduce(logps_R, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad_R,) = grads
        hidden_RH, local_R, mine_R, share_R = ctx.saved_tensors
        weight_VH = ctx.weight
        grad_hidden_RH, grad_weight_VH = torch.empty_like(hidden_RH), _sum_of_gradients(weight_VH, ctx.needs_input_grad[1])
        chunks = _Room(len(grad_R), weight_VH)
        for part in _chunks(len(grad_R)):
            logits_CV = chunks.logits(hidden_RH[part])
            slope_CV = torch.softmax(logits_CV, 1, out=logits_CV).mul_((-grad_R[part] * share_R[part].exp())[:, None])
            slope_CV.scatter_add_(1, local_R[part, None], (grad_R[part] * mine_R[part])[:, None])
            slope_CV = chunks.in_dtype_of_weight(slope_CV)
            grad_hidden_RH[part] = slope_CV @ weight_VH
            if grad_weight_VH is not None:  # a policy with adapters does not train it
                add_product(grad_weight_VH, slope_CV, hidden_RH[part])
        if grad_weight_VH is None or hasattr(weight_VH, "main_grad"):
            return grad_hidden_RH, None, None, None
        return grad_hidden_RH, grad_weight_VH.to(weight_VH.dtype), None, None


class _Room:
    """Memory for the logits of one chunk, used for one after the other."""

    def __init__(self, num_tokens: int, weight_VH: Tensor) -> None:
        shape, where, dtype = (min(num_tokens, CHUNK_TOKENS), weight_VH.shape[0]), weight_VH.device, weight_VH.dtype
        self._weight_VH = weight_VH
        self._float = room("logits", *shape, device=where)
        self._narrow = self._float if dtype is torch.float32 else room("logits", *shape, dtype=dtype, device=where)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """hidden @ weight.T, in float32 from there on; valid until the next call."""
        product_CV = torch.mm(hidden_CH, self._weight_VH.t(), out=self._narrow[: len(hidden_CH)])
        return product_CV if self._narrow is self._float else self._float[: len(hidden_CH)].copy_(product_CV)

    def in_dtype_of_weight(self, values_CV: Tensor) -> Tensor:
        """`values`, rounded to what the weight is stored in."""
        return values_CV if self._narrow is self._float else self._narrow[: len(values_CV)].copy_(values_CV)


def _sum_of_gradients(weight_VH: Tensor, is_trained: bool) -> Tensor | None:
    """Where the weight's gradient is to be added up."""
    if not is_trained:
        return None
    main_grad = getattr(weight_VH, "main_grad", None)
    return torch.zeros_like(weight_VH, dtype=torch.float32) if main_grad is None else main_grad


def _chunks(num_tokens: int) -> list[slice]:
    """At least one chunk, be it empty: a rank may hold no response token."""
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, max(1, num_tokens), CHUNK_TOKENS)]


def _is_split(group: Any) -> bool:
    return group is not None and dist.get_world_size(group) > 1


def _local_targets(targets_R: Tensor, share: int, group: Any) -> tuple[Tensor, Tensor]:
    """Target ids within this rank's share of the vocabulary (clamped), and 1.0 where the target lies in it."""
    if not _is_split(group):
        return targets_R, torch.ones_like(targets_R, dtype=torch.float32)
    local_R = targets_R - dist.get_rank(group) * share
    mine_R = (local_R >= 0) & (local_R < share)
    return local_R.clamp(0, share - 1), mine_R.float()


def _log_sum_exp_over(log_z_C: Tensor, group: Any) -> Tensor:
    """log(sum(exp(log_z))) over the ranks of `group`."""
    highest_C = _all_reduce(log_z_C.clone(), group, dist.ReduceOp.MAX)
    return _all_reduce((log_z_C - highest_C).exp(), group).log() + highest_C


def _all_reduce(values: Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    if _is_split(group):
        dist.all_reduce(values, op=op, group=group)
    return values

"""Log-probs of response tokens without the full logits [R, V]: block by block of the vocabulary, which may be split over ranks.

The forward pass keeps, for each token and block, the logarithm of the block's share of the token's probability. From this share
and the softmax over the block follows the gradient of every logit but the target's. The gradient of the target's logit, 1 - p,
is computed from the exact log-prob and added separately, because p in a block is rounded to the dtype of the weights.

`response_logps` computes each block of logits again in the backward pass. `trained_logps` computes each block only once: it is
given the slope of the loss, so it can compute the gradients of some pairs as soon as it has their log-probs.

Legend: R response tokens, C tokens of a chunk, H hidden, V this rank's share of the vocabulary, B entries of a block of
V, N blocks. The reduction over the vocabulary is in float32, whatever the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemotron_dpo.kernels.logits import Logits, blocks, chunks
from nemotron_dpo.policy.logprob_gradients import ChunkGradients, sum_of_gradients, to_autograd, within
from nemotron_dpo.policy.token_values import TokenValues

# log-probs, float32 [R] -> d loss / d log-prob, float32 [R]. The slopes of a pair depend only on its own log-probs.
Slope = Callable[[Tensor], Tensor]


def response_logps(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    group: Any = None,
    values: TokenValues | None = None,
    softcap: float | None = None,
) -> Tensor:
    """log softmax(hidden @ weight.T)[target] for each row, float32 [R], differentiable in hidden and weight.

    `group` is the tensor-parallel process group over which the vocabulary is split in equal, ordered shares. The gradient of
    `hidden` is then only this rank's part, and the caller's layer must reduce it. If the weight has a `main_grad`, its gradient
    is added there and not returned to autograd. `values`, unless None, takes what it asks for of each token. With `softcap` c,
    unless it is None, logits are c * tanh(hidden @ weight.T / c).
    """
    if values is not None:
        values.begin(len(targets_R), targets_R.device)
    return _ResponseLogps.apply(hidden_RH, weight_VH, targets_R, group, values, softcap)  # type: ignore[return-value] - torch does not type Function.apply


def trained_logps(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    slope: Slope,
    parts: Sequence[slice],
    group: Any = None,
    values: TokenValues | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`response_logps` for a loss whose `slope` is known before the backward pass; gradients are computed in the forward pass.

    The caller must differentiate exactly this loss, with 1 as the gradient of the loss itself. `parts` divide R between pairs.
    The logits of one part are held in memory at a time; `slope` is then called with 0 for the log-probs of later parts, once
    `values` took those of the same tokens. The gradient of the weight is added to its `main_grad` already in the forward pass.
    Raises RuntimeError in the backward pass, on a CPU only, if the gradient of the log-probs is not the slope.
    """
    if values is not None:
        values.begin(len(targets_R), targets_R.device)
    return _TrainedLogps.apply(hidden_RH, weight_VH, targets_R, slope, parts, group, values, softcap)  # type: ignore[return-value] - torch does not type Function.apply


def slope_of(loss: Callable[[Tensor], Tensor]) -> Slope:
    """The slope, computed by autograd, of a loss that is a sum over pairs."""

    def slope(logps_R: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf_R = logps_R.detach().requires_grad_()
            (slope_R,) = torch.autograd.grad(loss(leaf_R), leaf_R)
        return slope_R

    return slope


class _ResponseLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        targets_R: Tensor,
        group: Any,
        values: TokenValues | None,
        softcap: float | None,
    ) -> Tensor:
        local_R = _local(targets_R, weight_VH, group)
        log_share_NR = torch.empty(len(blocks(weight_VH)), len(targets_R), device=hidden_RH.device)
        logps_R = torch.empty_like(log_share_NR[0])
        for part in chunks(len(targets_R), weight_VH):
            logits = Logits(hidden_RH[part], weight_VH, keep=False, softcap=softcap)
            logps_R[part], log_share_NR[:, part] = _logps(logits, local_R[part], group, values, part)
        ctx.save_for_backward(hidden_RH, local_R, log_share_NR, logps_R)
        ctx.weight, ctx.softcap = weight_VH, softcap
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_R,) = grads
        hidden_RH, local_R, log_share_NR, logps_R = ctx.saved_tensors
        weight_VH, grad_hidden_RH = ctx.weight, torch.empty_like(hidden_RH)
        total_VH = sum_of_gradients(weight_VH, ctx.needs_input_grad[1])
        for part in chunks(len(grad_R), weight_VH):
            hidden_CH = hidden_RH[part]
            gradients = ChunkGradients(hidden_CH, weight_VH, local_R[part], total_VH, ctx.softcap)
            logits = Logits(hidden_CH, weight_VH, keep=False, softcap=ctx.softcap)
            grad_hidden_RH[part] = gradients.add(logits, grad_R[part], logps_R[part], log_share_NR[:, part])
        return grad_hidden_RH, to_autograd(total_VH, weight_VH), None, None, None, None


class _TrainedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        targets_R: Tensor,
        slope: Slope,
        parts: Sequence[slice],
        group: Any,
        values: TokenValues | None,
        softcap: float | None,
    ) -> Tensor:
        local_R, grad_hidden_RH = _local(targets_R, weight_VH, group), torch.empty_like(hidden_RH)
        total_VH = sum_of_gradients(weight_VH, ctx.needs_input_grad[1])
        logps_R, slope_R = torch.zeros(2, len(targets_R), device=hidden_RH.device)
        for part in parts:
            logits = Logits(hidden_RH[part], weight_VH, keep=True, softcap=softcap)
            logps_R[part], log_share_NC = _logps(logits, local_R[part], group, values, part)
            slope_R[part] = slope(logps_R)[part]
            gradients = ChunkGradients(hidden_RH[part], weight_VH, local_R[part], total_VH, softcap)
            grad_hidden_RH[part] = gradients.add(logits, slope_R[part], logps_R[part], log_share_NC)
            del logits  # frees their memory before the next part allocates its own
        ctx.save_for_backward(grad_hidden_RH, slope_R)
        ctx.grad_weight_VH = to_autograd(total_VH, weight_VH)
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_RH, slope_R = ctx.saved_tensors
        # not on a GPU, where the comparison would make the host wait
        if not (slope_R.is_cuda or torch.allclose(grads[0], slope_R, rtol=0, atol=0, equal_nan=True)):
            raise RuntimeError("the loss is not the one whose slope was given, or not a sum over pairs")
        return grad_hidden_RH, ctx.grad_weight_VH, None, None, None, None, None, None


def _logps(logits: Logits, local_C: Tensor, group: Any, values: TokenValues | None, part: slice) -> tuple[Tensor, Tensor]:
    """Log-probs [C] of the targets, and the logarithm of each block's share of each token's probability [N, C].

    `values` takes what it asks for of the same tokens, which are `part` of its own.
    """
    log_z_NC = torch.empty(len(logits.blocks), len(local_C), device=local_C.device)
    target_logit_C = torch.zeros_like(log_z_NC[0])
    sums_N5C = None if values is None else values.sums(logits.blocks, len(local_C))
    for index, block in enumerate(logits.blocks):
        place_C1, here_C = within(block, local_C)
        logit_C, log_z_NC[index] = logits.read(index, place_C1, None if sums_N5C is None else sums_N5C[index])
        target_logit_C += logit_C * here_C
    log_z_C = _log_sum_exp_over(torch.logsumexp(log_z_NC, 0), group)
    target_logit_C = _all_reduce(target_logit_C, group)
    if values is not None and sums_N5C is not None:
        values.take(part, sums_N5C, logits.blocks, local_C, target_logit_C, group)
    return target_logit_C - log_z_C, log_z_NC.sub_(log_z_C)


def _local(targets_R: Tensor, weight_VH: Tensor, group: Any) -> Tensor:
    """Target ids relative to the first entry of this rank's share of the vocabulary; out of range if another rank has it."""
    return targets_R - (dist.get_rank(group) * len(weight_VH) if _is_split(group) else 0)


def _is_split(group: Any) -> bool:
    return group is not None and dist.get_world_size(group) > 1


def _log_sum_exp_over(log_z_C: Tensor, group: Any) -> Tensor:
    """log(sum(exp(log_z))) over the ranks of `group`."""
    if not _is_split(group):
        return log_z_C
    highest_C = _all_reduce(log_z_C.clone(), group, dist.ReduceOp.MAX)
    return _all_reduce((log_z_C - highest_C).exp(), group).log() + highest_C


def _all_reduce(values: Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    if _is_split(group):
        dist.all_reduce(values, op=op, group=group)
    return values

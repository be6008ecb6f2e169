"""Log-probs of response tokens without the full logits: by blocks, forward and backward, vocabulary-parallel under TP.

A block of logits, some tokens by some vocabulary entries, fits a CPU's cache: products write and read it there. What is known
of a block after the forward pass is its share of each token's probability, from which the backward pass, which makes the block
again, has the gradient of every entry but the target's; that one is known exactly from the log-prob and is added by itself, as
1 - p must not be made of a rounded p.

Legend: R response tokens, C tokens of a chunk, H hidden, V this rank's share of the vocabulary, B entries of a block of it,
N such blocks. The reduction over the vocabulary is float32 whatever the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemotron_dpo.policy.gradients import add_product, add_rows
from nemotron_dpo.policy.kernels import layers as kernels
from nemotron_dpo.policy.workspace import room

CHUNK_TOKENS, BLOCK_ENTRIES = 2048, 2048
GPU_CHUNK_TOKENS, GPU_BLOCK_ENTRIES = 8192, 16384  # large products; a gradient of weights is read and written once a chunk


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
        local_R = targets_R - (dist.get_rank(group) * len(weight_VH) if _is_split(group) else 0)
        blocks, room_CB = _blocks(weight_VH), _Room(len(targets_R), weight_VH)
        log_z_NR = torch.empty(len(blocks), len(targets_R), device=hidden_RH.device)
        target_logit_R = torch.zeros_like(log_z_NR[0])
        for part in _chunks(len(targets_R), weight_VH):
            for block, log_z_R in zip(blocks, log_z_NR, strict=True):
                logits_CB = room_CB.logits(hidden_RH[part], weight_VH[block])
                place_C1, here_C = _within(block, local_R[part])
                target_logit_R[part] += logits_CB.at(place_C1) * here_C
                log_z_R[part] = logits_CB.log_sum_exp()
        log_z_R = _log_sum_exp_over(torch.logsumexp(log_z_NR, 0), group)
        logps_R = _all_reduce(target_logit_R, group) - log_z_R
        ctx.save_for_backward(hidden_RH, local_R, log_z_NR.sub_(log_z_R), logps_R)
        ctx.weight = weight_VH
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad_R,) = grads
        hidden_RH, local_R, log_share_NR, logps_R = ctx.saved_tensors
        weight_VH, grad_hidden_RH = ctx.weight, torch.empty_like(hidden_RH)
        grad_weight_VH, room_CB = _sum_of_gradients(weight_VH, ctx.needs_input_grad[1]), _Room(len(grad_R), weight_VH)
        for part in _chunks(len(grad_R), weight_VH):
            hidden_CH, local_C = hidden_RH[part], local_R[part]
            of_target_C = -grad_R[part] * logps_R[part].expm1()  # expm1(log p) is p - 1
            grad_CH = _gradient_from_target(of_target_C, hidden_CH, local_C, weight_VH, grad_weight_VH)
            for block, log_share_R in zip(_blocks(weight_VH), log_share_NR, strict=True):
                p_CB = room_CB.logits(hidden_CH, weight_VH[block]).probabilities()
                _clear_targets(p_CB, *_within(block, local_C))
                scale_C1 = (-grad_R[part] * log_share_R[part].exp())[:, None]
                grad_CH.addcmul_(_float_product(p_CB, weight_VH[block]), scale_C1)
                if grad_weight_VH is not None:  # a policy with adapters does not train it
                    scaled_CH = room("scaled hidden", *hidden_CH.shape, dtype=p_CB.dtype, device=p_CB.device)
                    add_product(grad_weight_VH[block], p_CB, torch.mul(hidden_CH, scale_C1, out=scaled_CH))
            grad_hidden_RH[part] = grad_CH
        if grad_weight_VH is None or hasattr(weight_VH, "main_grad"):
            return grad_hidden_RH, None, None, None
        return grad_hidden_RH, grad_weight_VH.to(weight_VH.dtype), None, None


def _gradient_from_target(
    slope_C: Tensor, hidden_CH: Tensor, local_C: Tensor, weight_VH: Tensor, grad_weight_VH: Tensor | None
) -> Tensor:
    """The float32 gradient of `hidden` that comes by the targets' own logits; that of the weight is added to `grad_weight`."""
    place_C1, here_C = _within(slice(0, len(weight_VH)), local_C)
    slope_C1 = (slope_C * here_C)[:, None]
    if grad_weight_VH is not None:
        add_rows(grad_weight_VH, place_C1.squeeze(1), hidden_CH * slope_C1)
    return weight_VH[place_C1.squeeze(1)] * slope_C1


def _float_product(p_CB: Tensor, weight_BH: Tensor) -> Tensor:
    """p @ weight, rounded to their dtype, as float32; valid until the next call."""
    shape, where = (len(p_CB), weight_BH.shape[1]), p_CB.device
    product_CH = torch.mm(p_CB, weight_BH, out=room("hidden gradient", *shape, dtype=p_CB.dtype, device=where))
    return room("wide hidden gradient", *shape, device=where).copy_(product_CH)


def _clear_targets(p_CB: Tensor, place_C1: Tensor, here_C: Tensor) -> None:
    """Set to 0 what lies at the targets, in their own places of memory: scatter_ copies all of `p`."""
    at_C = torch.arange(len(p_CB), device=p_CB.device) * p_CB.shape[1] + place_C1.squeeze(1)
    p_CB.view(-1).index_copy_(0, at_C, p_CB.view(-1)[at_C] * ~here_C)


class _Room:
    """Memory for the logits of one block, used for one after the other; what a method returns is valid until the next."""

    def __init__(self, num_tokens: int, weight_VH: Tensor) -> None:
        tokens, entries = _most(weight_VH)
        self._most = self._shape = min(num_tokens, tokens), entries
        self._narrow = room("logits", *self._most, dtype=weight_VH.dtype, device=weight_VH.device)

    def logits(self, hidden_CH: Tensor, weight_BH: Tensor) -> _Room:
        """Compute hidden @ weight.T, for one of the following to read."""
        self._shape = (len(hidden_CH), len(weight_BH))
        torch.mm(hidden_CH, weight_BH.t(), out=self._logits())
        return self

    def at(self, place_C1: Tensor) -> Tensor:
        """The logits of one entry of each token, float32 [C]."""
        return self._logits().gather(1, place_C1).squeeze(1).float()

    def log_sum_exp(self) -> Tensor:
        """log(sum(exp(logits))) over the block, float32 [C]; the logits are gone after it."""
        narrow = self._logits()
        if narrow.is_cuda and kernels.serve(narrow):
            return kernels.log_sum_exp(narrow)
        wide = narrow if narrow.dtype is torch.float32 else self._wide().copy_(narrow)
        first_C = wide[:, 0].clone()
        return first_C - torch.log_softmax(wide, 1, out=wide)[:, 0]

    def probabilities(self) -> Tensor:
        """softmax of the logits over the block, computed in float32 and rounded to what the weight is stored in."""
        narrow = self._logits()
        return torch.softmax(narrow, 1, out=narrow)

    def _logits(self) -> Tensor:
        return _shaped(self._narrow, self._shape)

    def _wide(self) -> Tensor:
        return _shaped(room("logits", *self._most, device=self._narrow.device), self._shape)


def _shaped(whole: Tensor, shape: tuple[int, int]) -> Tensor:
    return whole.flatten()[: shape[0] * shape[1]].view(shape)


def _sum_of_gradients(weight_VH: Tensor, is_trained: bool) -> Tensor | None:
    """Where the weight's gradient is to be added up."""
    if not is_trained:
        return None
    main_grad = getattr(weight_VH, "main_grad", None)
    return torch.zeros_like(weight_VH, dtype=torch.float32) if main_grad is None else main_grad


def _chunks(num_tokens: int, weight_VH: Tensor) -> list[slice]:
    """At least one chunk, be it empty: a rank may hold no response token."""
    size, _ = _most(weight_VH)
    return [slice(start, start + size) for start in range(0, max(1, num_tokens), size)]


def _blocks(weight_VH: Tensor) -> list[slice]:
    _, size = _most(weight_VH)
    return [slice(start, min(start + size, len(weight_VH))) for start in range(0, len(weight_VH), size)]


def _most(weight_VH: Tensor) -> tuple[int, int]:
    """Tokens of a chunk and entries of a block."""
    return (GPU_CHUNK_TOKENS, GPU_BLOCK_ENTRIES) if weight_VH.is_cuda else (CHUNK_TOKENS, BLOCK_ENTRIES)


def _within(block: slice, local_C: Tensor) -> tuple[Tensor, Tensor]:
    """Places [C, 1] of targets within a block (clamped), and whether they lie in it at all [C]."""
    here_C = (local_C >= block.start) & (local_C < block.stop)
    return (local_C - block.start).clamp(0, block.stop - block.start - 1)[:, None], here_C


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

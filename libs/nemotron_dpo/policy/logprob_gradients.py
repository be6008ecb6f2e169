"""The gradients of the final hidden states and of the output layer, from the slopes of the log-probs of response tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.accumulation import add_product, add_rows
from nemotron_dpo.kernels.logits import Logits
from nemotron_dpo.kernels.scratch import scratch


class ChunkGradients:
    """The gradients from the log-probs of one chunk. The gradient of the weight is added to `total_VH`, unless that is None."""

    def __init__(
        self, hidden_CH: Tensor, weight_VH: Tensor, local_C: Tensor, total_VH: Tensor | None, softcap: float | None
    ) -> None:
        self._hidden_CH, self._weight_VH, self._local_C, self._total_VH = hidden_CH, weight_VH, local_C, total_VH
        self._softcap = softcap

    def add(self, logits: Logits, slope_C: Tensor, logps_C: Tensor, log_share_NC: Tensor) -> Tensor:
        """The gradient of `hidden`, float32 [C, H]. This overwrites what `logits` keeps, so do not use it again."""
        grad_CH = self._from_target(-slope_C * logps_C.expm1())  # expm1(log p) is p - 1
        for index, block in enumerate(logits.blocks):
            p_CB = logits.probabilities(index)
            _clear_targets(p_CB, *within(block, self._local_C))
            scale_C1 = (-slope_C * log_share_NC[index].exp())[:, None]
            grad_CH.addcmul_(_float_product(p_CB, self._weight_VH[block]), scale_C1)
            if self._total_VH is not None:  # None with LoRA adapters, which do not train this weight
                scaled_CH = scratch("scaled hidden", *self._hidden_CH.shape, dtype=p_CB.dtype, device=p_CB.device)
                add_product(self._total_VH[block], p_CB, torch.mul(self._hidden_CH, scale_C1, out=scaled_CH))
        return grad_CH

    def _from_target(self, slope_C: Tensor) -> Tensor:
        """The part of the gradient of `hidden` that comes from the targets' logits; adds the weight's part to `total_VH`."""
        place_C1, here_C = within(slice(0, len(self._weight_VH)), self._local_C)
        slope_C1, place_C = (slope_C * here_C)[:, None], place_C1.squeeze(1)
        if self._softcap is not None:
            logit_C1 = (self._hidden_CH.float() * self._weight_VH[place_C].float()).sum(1, keepdim=True)
            slope_C1 = slope_C1 * (1 - torch.tanh(logit_C1 / self._softcap).square())
        if self._total_VH is not None:
            add_rows(self._total_VH, place_C, self._hidden_CH * slope_C1)
        return self._weight_VH[place_C] * slope_C1


def _float_product(p_CB: Tensor, weight_BH: Tensor) -> Tensor:
    """p @ weight, rounded to the dtype of the factors, then widened to float32 [C, H]. The next call overwrites the result."""
    shape, where = (len(p_CB), weight_BH.shape[1]), p_CB.device
    product_CH = torch.mm(p_CB, weight_BH, out=scratch("hidden gradient", *shape, dtype=p_CB.dtype, device=where))
    return scratch("wide hidden gradient", *shape, device=where).copy_(product_CH)


def _clear_targets(p_CB: Tensor, place_C1: Tensor, here_C: Tensor) -> None:
    """Set the targets' entries of `p` to 0 in place. index_copy_ touches only these entries; scatter_ would copy all of `p`."""
    at_C = torch.arange(len(p_CB), device=p_CB.device) * p_CB.shape[1] + place_C1.squeeze(1)
    p_CB.view(-1).index_copy_(0, at_C, p_CB.view(-1)[at_C] * ~here_C)


def sum_of_gradients(weight_VH: Tensor, is_trained: bool) -> Tensor | None:
    """The tensor in which the gradient of the weight is summed; None if the weight is not trained."""
    if not is_trained:
        return None
    main_grad = getattr(weight_VH, "main_grad", None)
    return torch.zeros_like(weight_VH, dtype=torch.float32) if main_grad is None else main_grad


def to_autograd(total_VH: Tensor | None, weight_VH: Tensor) -> Tensor | None:
    """The gradient of the weight to return to autograd; None if it was added to `main_grad` or is not computed."""
    return None if total_VH is None or hasattr(weight_VH, "main_grad") else total_VH.to(weight_VH.dtype)


def within(block: slice, local_C: Tensor) -> tuple[Tensor, Tensor]:
    """Index [C, 1] of each target within the block, clamped to it, and whether the target lies in the block at all [C]."""
    here_C = (local_C >= block.start) & (local_C < block.stop)
    return (local_C - block.start).clamp(0, block.stop - block.start - 1)[:, None], here_C

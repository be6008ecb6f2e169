"""Logits of a block of the vocabulary in float32 by torch's operations, and what is kept of them.

Legend: C tokens, H hidden, B entries of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.float32_matmul import float_product


def read_logits(hidden_CH: Tensor, weight_BH: Tensor, place_C1: Tensor, softmax_CB: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `Kernels.read_logits`."""
    logits_CB = float_logits(hidden_CH, weight_BH, softmax_CB)
    at_C = logits_CB.gather(1, place_C1).squeeze(1)
    log_softmax_CB = torch.log_softmax(logits_CB, 1, out=scratch("log softmax", *logits_CB.shape, device=logits_CB.device))
    log_sums_C = logits_CB[:, 0] - log_softmax_CB[:, 0]
    if softmax_CB is not None:
        softmax_CB.copy_(torch.softmax(logits_CB, 1, out=logits_CB))
    return at_C, log_sums_C


def float_logits(hidden_CH: Tensor, weight_BH: Tensor, softmax_CB: Tensor | None) -> Tensor:
    """hidden @ weight.T, float32 [C, B], in the memory of `softmax_CB` if that is float32; else valid until the next call."""
    if softmax_CB is not None and softmax_CB.dtype is torch.float32:
        logits_CB = softmax_CB
    else:
        logits_CB = scratch("logits", len(hidden_CH), len(weight_BH), device=hidden_CH.device)
    float_product(hidden_CH, weight_BH, logits_CB)
    return logits_CB

"""Logits of a block of the vocabulary in float32 by torch's operations, and what is kept of them.

Legend: C tokens, H hidden, B entries of the block, 5 as in `Kernels.read_logits`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.float32_matmul import float_product

_SLAB_LOGITS = 2**17  # that a CPU's cache holds in several copies
_NEVER = 88.0  # nats below the highest logit, where e is 0 in float32, and a logit may be -inf


def read_logits(
    hidden_CH: Tensor, weight_BH: Tensor, place_C1: Tensor, softmax_CB: Tensor | None, sums_5C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `Kernels.read_logits`."""
    return read_summing(_sum_up, hidden_CH, weight_BH, place_C1, softmax_CB, sums_5C)


def read_summing(
    sum_up: Callable[[Tensor, Tensor, Tensor], None],
    hidden_CH: Tensor,
    weight_BH: Tensor,
    place_C1: Tensor,
    softmax_CB: Tensor | None,
    sums_5C: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `read_logits`, where `sum_up` writes the sums of logits [C, B] that lie behind one another."""
    logits_CB = float_logits(hidden_CH, weight_BH, softmax_CB)
    at_C = logits_CB.gather(1, place_C1).squeeze(1)
    if sums_5C is not None:
        sum_up(logits_CB, place_C1, sums_5C)
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


def _sum_up(logits_CB: Tensor, place_C1: Tensor, sums_5C: Tensor) -> None:
    """The sums of `Kernels.read_logits`: on a CPU of some tokens after the other, whose logits stay in the cache meanwhile."""
    rows = len(logits_CB) if logits_CB.is_cuda else max(1, _SLAB_LOGITS // logits_CB.shape[1])
    column_B = torch.arange(logits_CB.shape[1], device=logits_CB.device)
    for start in range(0, len(logits_CB), rows):
        part = slice(start, start + rows)
        below_CB, highest_C1 = logits_CB[part], logits_CB[part].amax(1, keepdim=True)
        before_C = below_CB.masked_fill(column_B >= place_C1[part], -torch.inf).amax(1)
        below_CB = (highest_C1 - below_CB).clamp_(max=_NEVER)
        e_CB = below_CB.neg().exp_()
        squares_C = torch.linalg.vecdot(e_CB, e_CB)
        sums_5C[:, part] = torch.stack(
            (highest_C1[:, 0], before_C, e_CB.sum(1), torch.linalg.vecdot(e_CB, below_CB), squares_C)
        )

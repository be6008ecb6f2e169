"""Logits of a block of the vocabulary in float32 by torch's operations, and what is kept of them.

Legend: C tokens, H hidden, B entries of the block, 5 as in `Kernels.read_logits`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.float32_matmul import float_product

_SLAB_LOGITS = 2**19  # that a CPU's last cache holds in several copies
_NEVER = 43.0  # nats below the highest: 2^18 such logits are lost in a float32 beside it; the square of e is not denormal yet


def read_logits(
    hidden_CH: Tensor,
    weight_BH: Tensor,
    place_C1: Tensor,
    softmax_CB: Tensor | None,
    sums_5C: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As `Kernels.read_logits`."""
    return read_summing(_sum_up, hidden_CH, weight_BH, place_C1, softmax_CB, sums_5C, softcap)


def read_summing(
    sum_up: Callable[[Tensor, Tensor, Tensor], None],
    hidden_CH: Tensor,
    weight_BH: Tensor,
    place_C1: Tensor,
    softmax_CB: Tensor | None,
    sums_5C: Tensor | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """As `read_logits`, where `sum_up` writes the sums of logits [C, B] that lie behind one another."""
    logits_CB = float_logits(hidden_CH, weight_BH, softmax_CB, softcap)
    at_C = logits_CB.gather(1, place_C1).squeeze(1)
    if sums_5C is not None:
        sum_up(logits_CB, place_C1, sums_5C)
    log_softmax_CB = torch.log_softmax(logits_CB, 1, out=scratch("log softmax", *logits_CB.shape, device=logits_CB.device))
    log_sums_C = logits_CB[:, 0] - log_softmax_CB[:, 0]
    if softmax_CB is not None:
        slopes_CB = None if softcap is None else slopes(logits_CB, softcap)
        torch.softmax(logits_CB, 1, out=logits_CB)
        softmax_CB.copy_(logits_CB if slopes_CB is None else logits_CB.mul_(slopes_CB))
    return at_C, log_sums_C


def float_logits(hidden_CH: Tensor, weight_BH: Tensor, softmax_CB: Tensor | None, softcap: float | None) -> Tensor:
    """hidden @ weight.T, capped where there is a cap, float32 [C, B].

    In the memory of `softmax_CB` if that is float32; else valid until the next call.
    """
    if softmax_CB is not None and softmax_CB.dtype is torch.float32:
        logits_CB = softmax_CB
    else:
        logits_CB = scratch("logits", len(hidden_CH), len(weight_BH), device=hidden_CH.device)
    float_product(hidden_CH, weight_BH, logits_CB)
    return logits_CB if softcap is None else logits_CB.div_(softcap).tanh_().mul_(softcap)


def slopes(capped_CB: Tensor, softcap: float) -> Tensor:
    """Of softcap * tanh(logit / softcap), where these are given: 1 - tanh^2, float32; valid until the next call."""
    slopes_CB = scratch("slopes", *capped_CB.shape, device=capped_CB.device)
    return torch.div(capped_CB, softcap, out=slopes_CB).square_().neg_().add_(1)


def _sum_up(logits_CB: Tensor, place_C1: Tensor, sums_5C: Tensor) -> None:
    """The sums of `Kernels.read_logits`: on a CPU of some tokens after the other, whose logits stay in the cache meanwhile."""
    rows = len(logits_CB) if logits_CB.is_cuda else max(1, _SLAB_LOGITS // logits_CB.shape[1])
    for start in range(0, len(logits_CB), rows):
        part = slice(start, start + rows)
        x_CB, highest_C1 = logits_CB[part], logits_CB[part].amax(1, keepdim=True)
        below_CB, e_CB = (scratch(name, *x_CB.shape, device=x_CB.device) for name in ("below the highest", "e of logits"))
        torch.sub(highest_C1, x_CB, out=below_CB).clamp_(max=_NEVER)
        total_C = torch.neg(below_CB, out=e_CB).exp_().sum(1)
        weighted_C, squares_C = below_CB.mul_(e_CB).sum(1), e_CB.mul_(e_CB).sum(1)
        first_C = _is_first(x_CB, place_C1[part], highest_C1)
        sums_5C[:, part] = torch.stack((highest_C1[:, 0], first_C, total_C, weighted_C, squares_C))


def _is_first(logits_CB: Tensor, place_C1: Tensor, highest_C1: Tensor) -> Tensor:
    """1 where the logit at a token's place is the first of its highest, else 0. Few are, and argmax takes long on a CPU."""
    is_first_C = (logits_CB.gather(1, place_C1) == highest_C1)[:, 0]
    if logits_CB.is_cuda:  # where to count these would make the host wait
        return (is_first_C & (logits_CB.argmax(1) == place_C1[:, 0])).float()
    those = is_first_C.nonzero()[:, 0]
    return is_first_C.float().index_copy(0, those, (logits_CB[those].argmax(1) == place_C1[those, 0]).float())

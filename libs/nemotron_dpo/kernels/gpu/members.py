"""The members that Triton computes on a GPU, as a model calls them.

Legend: T tokens, H features, C tokens, B entries of a block of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.gpu import triton_kernels
from nemotron_dpo.kernels.torch_ops import activation, norm, rotary
from nemotron_dpo.kernels.torch_ops.logits import float_logits, slopes


def swiglu(gate_and_up: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu`."""
    return triton_kernels.swiglu(gate_and_up) if _serve(gate_and_up) else activation.swiglu(gate_and_up, owner)


def swiglu_backward(gate_and_up: Tensor, grad: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu_backward`."""
    if not _serve(gate_and_up):
        return activation.swiglu_backward(gate_and_up, grad, owner)
    return triton_kernels.swiglu_backward(gate_and_up, grad)


def rms_norm(x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `Kernels.rms_norm`."""
    return (triton_kernels if _serve(x) else norm).rms_norm(x, gain_H, eps)


def rms_norm_backward(x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor, of_gain: bool) -> tuple[Tensor, Tensor | None]:
    """As `Kernels.rms_norm_backward`."""
    if not _serve(x):
        return norm.rms_norm_backward(x, gain_H, scales_T, grad, of_gain)
    return triton_kernels.rms_norm_backward(x, gain_H, scales_T, grad)


def rotate(x_TND: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    """As `Kernels.rotate`."""
    return (triton_kernels if _serve(cosines, sines) else rotary).rotate(x_TND, cosines, sines, direction)


def read_logits(
    hidden_CH: Tensor,
    weight_BH: Tensor,
    place_C1: Tensor,
    softmax_CB: Tensor | None,
    sums_5C: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As `Kernels.read_logits`."""
    logits_CB = float_logits(hidden_CH, weight_BH, softmax_CB, softcap)
    at_C = logits_CB.gather(1, place_C1).squeeze(1)
    slopes_CB = None if softcap is None or softmax_CB is None else slopes(logits_CB, softcap)
    if softmax_CB is not None and softmax_CB.dtype is torch.float32:  # the logits are in its memory
        log_sums_C = triton_kernels.log_sum_exp(logits_CB, None, place_C1, sums_5C)
        torch.softmax(logits_CB, 1, out=softmax_CB)
    else:
        log_sums_C = triton_kernels.log_sum_exp(logits_CB, softmax_CB, place_C1, sums_5C)
    if softmax_CB is not None and slopes_CB is not None:
        softmax_CB.mul_(slopes_CB)
    return at_C, log_sums_C


def _serve(*tensors: Tensor) -> bool:
    """Whether the kernels take these: bfloat16 or float32 in the memory of a GPU, without gaps."""
    return all(x.is_cuda and x.is_contiguous() and x.dtype in (torch.bfloat16, torch.float32) for x in tensors)

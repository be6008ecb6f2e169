"""What lies between the products of a layer, in one pass over memory: by C in bfloat16 on a CPU, by Triton on a GPU.

Values are rounded where torch's operations round them, so all ways agree but for the order of float32 sums.

Legend: T tokens, H features, N heads, D head size, B vocabulary entries.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

import torch
from torch import Tensor

from nemotron_dpo.policy.backend import has_triton
from nemotron_dpo.policy.kernels.build import library
from nemotron_dpo.policy.workspace import room


def serve(*tensors: Tensor) -> bool:
    """Whether there are kernels for these: without gaps, and bfloat16 in the memory of a CPU, or on a GPU."""
    if not all(x.is_contiguous() and x.dtype in _DTYPES[x.is_cuda] for x in tensors):
        return False
    return (gpu_kernels() if tensors[0].is_cuda else library()) is not None


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """The kernels for GPUs; None without Triton, which comes with torch for CUDA, or where NEMOTRON_DPO_KERNELS is 0."""
    if not has_triton(os.environ):
        return None
    from nemotron_dpo.policy.kernels import gpu_layers

    return gpu_layers


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2H] -> [..., H]."""
    if gate_and_up.is_cuda:
        return _on_gpu().swiglu(gate_and_up)
    size = gate_and_up.shape[-1] // 2
    out = gate_and_up.new_empty(*gate_and_up.shape[:-1], size)
    _run("swiglu", gate_and_up, out, out.numel() // size, size)
    return out


def swiglu_backward(gate_and_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient [..., 2H] of both halves from that of `swiglu` [..., H]."""
    if gate_and_up.is_cuda:
        return _on_gpu().swiglu_backward(gate_and_up, grad)
    out = torch.empty_like(gate_and_up)
    _run("swiglu_backward", gate_and_up, grad.contiguous(), out, grad.numel() // grad.shape[-1], grad.shape[-1])
    return out


def rms_norm(x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., H] / sqrt(mean(x^2) + eps) * gain, and the inverses of the roots [T]; the gain is float32."""
    if x.is_cuda:
        return _on_gpu().rms_norm(x, gain_H, eps)
    num_rows, size = x.numel() // x.shape[-1], x.shape[-1]
    out, scales_T = torch.empty_like(x), torch.empty(num_rows)
    _run("rms_norm", x, gain_H, out, scales_T, num_rows, size, eps)
    return out, scales_T


def rms_norm_backward(x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., H] and, float32, of the gain [H] from that of `rms_norm` [..., H]."""
    if x.is_cuda:
        return _on_gpu().rms_norm_backward(x, gain_H, scales_T, grad)
    size, threads = x.shape[-1], torch.get_num_threads()
    out, gain_grad_H = torch.empty_like(x), torch.empty_like(gain_H)
    parts = room("gain gradients", threads * (size + _LANES))
    _run("rms_norm_backward", x, gain_H, scales_T, grad.contiguous(), out, gain_grad_H, parts, len(scales_T), size)
    return out, gain_grad_H


def rotate(x_TND: Tensor, cosines: Tensor, sines: Tensor, direction: float) -> Tensor:
    """Queries or keys [T, 1, N, D], of which the first entries are turned by angles [T, 1, 1, as many]."""
    if x_TND.is_cuda:
        return _on_gpu().rotate(x_TND, cosines, sines, direction)
    x_TND = x_TND.contiguous()
    out = torch.empty_like(x_TND)
    num_rows, _, num_heads, size = x_TND.shape
    _run("rotate", x_TND, cosines, sines, out, num_rows, num_heads, size, cosines.shape[-1], direction)
    return out


def log_sum_exp(logits_TB: Tensor, softmax_TB: Tensor | None) -> Tensor:
    """log(sum(exp(logits))) of each row [T], float32, and its softmax into what there is for it; on a GPU alone."""
    return _on_gpu().log_sum_exp(logits_TB, softmax_TB)


def add_half(total: Tensor, part: Tensor) -> None:
    """total += part, of float32 and bfloat16."""
    _run("add_half", total, part, part.numel())


_LANES = 16  # at most
_DTYPES = {False: (torch.bfloat16,), True: (torch.bfloat16, torch.float32)}  # by whether they lie on a GPU


def _on_gpu() -> ModuleType:
    loaded = gpu_kernels()
    assert loaded is not None
    return loaded


def _run(name: str, *values: Tensor | float) -> None:
    loaded = library()
    assert loaded is not None
    arguments = (value.data_ptr() if isinstance(value, Tensor) else value for value in values)
    getattr(loaded, name)(*arguments, torch.get_num_threads())

"""What lies between the products of a layer, by the compiled kernels: in bfloat16 on a CPU, in one pass over memory.

Values are rounded where torch's operations round them, so both ways agree but for the order of float32 sums.

Legend: T tokens, H features, N heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.policy.kernels.build import library
from nemotron_dpo.policy.workspace import room


def serve(*tensors: Tensor) -> bool:
    """Whether there are kernels for these: bfloat16 in the memory of a CPU, without gaps."""
    fit = all(x.dtype is torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    return fit and library() is not None


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2H] -> [..., H]."""
    size = gate_and_up.shape[-1] // 2
    out = gate_and_up.new_empty(*gate_and_up.shape[:-1], size)
    _run("swiglu", gate_and_up, out, out.numel() // size, size)
    return out


def swiglu_backward(gate_and_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient [..., 2H] of both halves from that of `swiglu` [..., H]."""
    out = torch.empty_like(gate_and_up)
    _run("swiglu_backward", gate_and_up, grad.contiguous(), out, grad.numel() // grad.shape[-1], grad.shape[-1])
    return out


def rms_norm(x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., H] / sqrt(mean(x^2) + eps) * gain, and the inverses of the roots [T]; the gain is float32."""
    num_rows, size = x.numel() // x.shape[-1], x.shape[-1]
    out, scales_T = torch.empty_like(x), torch.empty(num_rows)
    _run("rms_norm", x, gain_H, out, scales_T, num_rows, size, eps)
    return out, scales_T


def rms_norm_backward(x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., H] and, float32, of the gain [H] from that of `rms_norm` [..., H]."""
    size, threads = x.shape[-1], torch.get_num_threads()
    out, gain_grad_H = torch.empty_like(x), torch.empty_like(gain_H)
    parts = room("gain gradients", threads * (size + _LANES))
    _run("rms_norm_backward", x, gain_H, scales_T, grad.contiguous(), out, gain_grad_H, parts, len(scales_T), size)
    return out, gain_grad_H


def rotate(x_TND: Tensor, cosines: Tensor, sines: Tensor, direction: float) -> Tensor:
    """Queries or keys [T, 1, N, D], of which the first entries are turned by angles [T, 1, 1, as many]."""
    x_TND = x_TND.contiguous()
    out = torch.empty_like(x_TND)
    num_rows, _, num_heads, size = x_TND.shape
    _run("rotate", x_TND, cosines, sines, out, num_rows, num_heads, size, cosines.shape[-1], direction)
    return out


def add_half(total: Tensor, part: Tensor) -> None:
    """total += part, of float32 and bfloat16."""
    _run("add_half", total, part, part.numel())


_LANES = 16  # at most


def _run(name: str, *values: Tensor | float) -> None:
    loaded = library()
    assert loaded is not None
    arguments = (value.data_ptr() if isinstance(value, Tensor) else value for value in values)
    getattr(loaded, name)(*arguments, torch.get_num_threads())

"""The causal convolution on a CPU, in C: what torch_ops/convolution.py computes, in one pass over memory.

Legend: S packed tokens, C channels, W taps, U uses of a token by a tap of another.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_dpo.kernels.chunks import Chunks
from nemotron_dpo.kernels.torch_ops import convolution

_MOST_TAPS = 16


def convolve(library: ctypes.CDLL, x_SC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, chunks: Chunks) -> Tensor:
    """As `Kernels.convolve`."""
    if not _serves(x_SC, weight_CW):
        return convolution.convolve(x_SC, weight_CW, bias_C, chunks)
    x, weight_WC = _rows(x_SC), _weight(weight_CW)
    bias = torch.zeros(x.shape[1]) if bias_C is None else bias_C.float().contiguous()
    call, out = _call(x, x, weight_WC, chunks), torch.empty(x.shape, dtype=x.dtype)
    library.convolve(ctypes.byref(call), x.data_ptr(), bias.data_ptr(), out.data_ptr())
    return out


def convolve_backward(
    library: ctypes.CDLL, grad_SC: Tensor, x_SC: Tensor, weight_CW: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels.convolve_backward`."""
    if not _serves(x_SC, weight_CW):
        return convolution.convolve_backward(grad_SC, x_SC, weight_CW, chunks)
    x, grad, weight_WC = _rows(x_SC), _rows(grad_SC.to(x_SC.dtype)), _weight(weight_CW)
    dx, sums = torch.empty(x.shape, dtype=x.dtype), torch.empty(1 + len(weight_WC), x.shape[1])
    call = _call(x, grad, weight_WC, chunks)
    library.convolve_backward(ctypes.byref(call), x.data_ptr(), grad.data_ptr(), dx.data_ptr(), sums.data_ptr())
    return dx, sums[1:].flip(0).t().to(weight_CW.dtype), sums[0].to(weight_CW.dtype)


class _Call(ctypes.Structure):
    """`Call` of convolution.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("is_half", "num_tokens", "num_channels", "num_taps", "num_threads")),
        *((name, ctypes.c_int64) for name in ("x_row", "grad_row")),
        *((name, ctypes.c_void_p) for name in ("earlier", "firsts", "users", "weight")),
    ]


@dataclass(frozen=True, eq=False)
class _Uses:
    """Which tokens each takes, and which take it, as convolution.c has them."""

    earlier_WS: Tensor
    firsts: Tensor
    users_U2: Tensor


@functools.lru_cache(maxsize=8)
def _uses(chunks: Chunks, width: int, num_tokens: int) -> _Uses:
    """Made once for all layers of a pass."""
    earlier_WS = convolution.earlier_tokens(chunks, width, num_tokens)
    taps_U, tokens_U = (earlier_WS >= 0).nonzero(as_tuple=True)
    taken_U = earlier_WS[taps_U, tokens_U]
    order_U = taken_U.argsort(stable=True)
    firsts = torch.zeros(num_tokens + 1, dtype=torch.int64)
    firsts[1:] = taken_U.bincount(minlength=num_tokens).cumsum(0)
    return _Uses(earlier_WS.contiguous(), firsts, torch.stack((tokens_U, taps_U), 1)[order_U].contiguous())


def _call(x: Tensor, grad: Tensor, weight_WC: Tensor, chunks: Chunks) -> _Call:
    uses = _uses(chunks, len(weight_WC), len(x))
    sizes = x.dtype is torch.bfloat16, *x.shape, len(weight_WC), torch.get_num_threads(), x.stride(0), grad.stride(0)
    return _Call(*sizes, *(of.data_ptr() for of in (uses.earlier_WS, uses.firsts, uses.users_U2, weight_WC)))


def _serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes these: float32 or bfloat16 in the memory of a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and weight.shape[1] <= _MOST_TAPS


def _weight(weight_CW: Tensor) -> Tensor:
    """[W, C], float32, that of the token itself first."""
    return weight_CW.float().t().flip(0).contiguous()


def _rows(x: Tensor) -> Tensor:
    """`x` [S, C] with each token's channels behind one another; tokens may be further apart."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()

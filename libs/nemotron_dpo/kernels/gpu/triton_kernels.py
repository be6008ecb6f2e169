"""What lies between the products of a layer and after the last of them, on a GPU, in Triton: one pass over memory each.

Values are rounded where torch's operations round them, as by the kernels for CPUs. Every sum is made in one order: no atomics.

Legend: T tokens, H features, N heads, D head size, B vocabulary entries of a block.
"""

# Triton is not installed where types are checked; what its language indexes are pointers.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 4096  # that a program reads at once of rows of any length
_PROGRAMS = 264  # that divide the tokens where these are summed over


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up of the two halves [..., 2H] -> [..., H]."""
    size = gate_and_up.shape[-1] // 2
    out = gate_and_up.new_empty(*gate_and_up.shape[:-1], size)
    _swiglu[_tiles(out)](gate_and_up, out, size, BLOCK=_block(size))
    return out


def swiglu_backward(gate_and_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient [..., 2H] of both halves from that of `swiglu` [..., H]."""
    out, grad = torch.empty_like(gate_and_up), grad.contiguous()
    _swiglu_backward[_tiles(grad)](gate_and_up, grad, out, grad.shape[-1], BLOCK=_block(grad.shape[-1]))
    return out


def rms_norm(x: Tensor, gain_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., H] / sqrt(mean(x^2) + eps) * gain, and the inverses of the roots [T]; the gain is float32."""
    size = x.shape[-1]
    out, scales_T = torch.empty_like(x), torch.empty(x.numel() // size, device=x.device)
    _rms_norm[(len(scales_T),)](x, gain_H, out, scales_T, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8)
    return out, scales_T


def rms_norm_backward(x: Tensor, gain_H: Tensor, scales_T: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., H] and, float32, of the gain [H] from that of `rms_norm` [..., H]."""
    size, num_programs = x.shape[-1], min(len(scales_T), _PROGRAMS)
    out, parts = torch.empty_like(x), torch.empty(num_programs, size, device=x.device)
    block = triton.next_power_of_2(size)
    _rms_norm_backward[(num_programs,)](
        x, gain_H, scales_T, grad.contiguous(), out, parts, len(scales_T), size, BLOCK=block, num_warps=8
    )
    return out, parts.sum(0)


def rotate(x_TND: Tensor, cosines: Tensor, sines: Tensor, direction: float) -> Tensor:
    """Queries or keys [T, 1, N, D], of which the first entries are turned by angles [T, 1, 1, as many]."""
    num_rows, _, num_heads, size = x_TND.shape
    if x_TND.stride(3) != 1:
        x_TND = x_TND.contiguous()
    out, half = x_TND.new_empty(x_TND.shape), cosines.shape[-1] // 2
    heads, halves = triton.next_power_of_2(num_heads), triton.next_power_of_2(half)
    rest = triton.next_power_of_2(size - 2 * half) if size > 2 * half else 0
    _rotate[(num_rows,)](
        x_TND, cosines, sines, out, x_TND.stride(0), x_TND.stride(2), num_heads, size, half, float(direction),
        HEADS=heads, HALF=halves, REST=rest,
    )  # fmt: skip
    return out


def log_sum_exp(
    logits_TB: Tensor, softmax_TB: Tensor | None, place_T1: Tensor | None = None, sums_5T: Tensor | None = None
) -> Tensor:
    """log(sum(exp(logits))) of each row [T], float32, and its softmax into `softmax_TB`; rows lie behind one another.

    Into `sums_5T` go the sums of `Kernels.read_logits`, for which each row has a place.
    """
    out_T = torch.empty(len(logits_TB), device=logits_TB.device)
    softmax, size = (logits_TB if softmax_TB is None else softmax_TB), logits_TB.shape[1]
    places = out_T if place_T1 is None else place_T1.contiguous()
    _log_sum_exp[(len(logits_TB),)](
        logits_TB, softmax, out_T, places, out_T if sums_5T is None else sums_5T, len(out_T), size,
        BLOCK=_COLUMNS, KEEP=int(softmax_TB is not None), SUM=int(sums_5T is not None), num_warps=8,
    )  # fmt: skip
    return out_T


def _tiles(of: Tensor) -> tuple[int, int]:
    """One program a row and block of columns."""
    return of.numel() // of.shape[-1], triton.cdiv(of.shape[-1], _block(of.shape[-1]))


def _block(size: int) -> int:
    return min(_COLUMNS, triton.next_power_of_2(size))


@triton.jit
def _swiglu(x, out, size, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(x + row * 2 * size + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * 2 * size + size + column, inside, 0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + column, silu * up, inside)


@triton.jit
def _swiglu_backward(x, grad, out, size, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(x + row * 2 * size + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * 2 * size + size + column, inside, 0.0).to(tl.float32)
    slope = tl.load(grad + row * size + column, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = (gate * sigmoid).to(out.dtype.element_ty).to(tl.float32)
    of_silu = (slope * up).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * 2 * size + column, of_silu * sigmoid * (1 + gate * (1 - sigmoid)), inside)
    tl.store(out + row * 2 * size + size + column, slope * silu, inside)


@triton.jit
def _rms_norm(x, gain, out, scales, size, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < size
    values = tl.load(x + row * size + column, inside, 0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(values * values, 0) / size + eps)
    tl.store(scales + row, scale)
    tl.store(out + row * size + column, values * scale * tl.load(gain + column, inside, 0.0), inside)


@triton.jit
def _rms_norm_backward(x, gain, scales, grad, out, parts, num_rows, size, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < size
    gains = tl.load(gain + column, inside, 0.0)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
        scale = tl.load(scales + row)
        normed = tl.load(x + row * size + column, inside, 0.0).to(tl.float32) * scale
        slope = tl.load(grad + row * size + column, inside, 0.0).to(tl.float32)
        total += slope * normed
        slope *= gains
        mean = tl.sum(slope * normed, 0) / size
        tl.store(out + row * size + column, (slope - normed * mean) * scale, inside)
    tl.store(parts + tl.program_id(0).to(tl.int64) * size + column, total, inside)


@triton.jit
def _rotate(
    x, cosines, sines, out, row_stride, head_stride, num_heads, size, half,
    direction, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside, angle = (head < num_heads) & (column < half), row * 2 * half + column
    source, target = x + row * row_stride + head * head_stride + column, out + (row * num_heads + head) * size + column
    first = tl.load(source, inside, 0.0).to(tl.float32)
    second = tl.load(source + half, inside, 0.0).to(tl.float32)
    cos_first = tl.load(cosines + angle, column < half, 0.0).to(tl.float32)
    cos_second = tl.load(cosines + angle + half, column < half, 0.0).to(tl.float32)
    sin_first = tl.load(sines + angle, column < half, 0.0).to(tl.float32) * direction
    sin_second = tl.load(sines + angle + half, column < half, 0.0).to(tl.float32) * direction
    tl.store(target, (first * cos_first).to(out.dtype.element_ty).to(tl.float32) + second * sin_first, inside)
    tl.store(target + half, (second * cos_second).to(out.dtype.element_ty).to(tl.float32) + first * sin_second, inside)
    if REST > 0:
        beyond = 2 * half + tl.arange(0, REST)[None, :]
        kept = (head < num_heads) & (beyond < size)
        values = tl.load(x + row * row_stride + head * head_stride + beyond, kept, 0.0)
        tl.store(out + (row * num_heads + head) * size + beyond, values, kept)


@triton.jit
def _log_sum_exp(
    logits, softmax, out, places, sums, num_rows, size, BLOCK: tl.constexpr, KEEP: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + row * size + column, column < size, float("-inf")).to(tl.float32)
        new = tl.maximum(highest, values)
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(highest - shift) + tl.exp(values - shift)
        highest = new
    most = tl.max(highest, 0)
    total_of_row = tl.sum(total * tl.exp(highest - most), 0)
    tl.store(out + row, most + tl.log(total_of_row))
    if KEEP > 0:
        for start in range(0, size, BLOCK):  # the row is in the cache still
            column = start + tl.arange(0, BLOCK)
            values = tl.load(logits + row * size + column, column < size, float("-inf"))
            tl.store(softmax + row * size + column, tl.exp(values - most) / total_of_row, column < size)
    if SUM > 0:
        place = tl.load(places + row)
        before = tl.full([BLOCK], float("-inf"), tl.float32)
        plain, weighted, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, size, BLOCK):
            column = start + tl.arange(0, BLOCK)
            values = tl.load(logits + row * size + column, column < size, float("-inf")).to(tl.float32)
            before = tl.maximum(before, tl.where(column < place, values, float("-inf")))
            part = tl.exp(values - most)
            plain += part
            weighted += tl.where(part > 0, part * (most - values), part)  # of -inf nothing, and of what is NaN that
            squares += part * part
        is_highest = tl.load(logits + row * size + place).to(tl.float32) == most
        first = tl.where(is_highest & (tl.max(before, 0) < most), 1.0, 0.0)
        tl.store(sums + row, most)
        tl.store(sums + num_rows + row, first)
        tl.store(sums + 2 * num_rows + row, tl.sum(plain, 0))
        tl.store(sums + 3 * num_rows + row, tl.sum(weighted, 0))
        tl.store(sums + 4 * num_rows + row, tl.sum(squares, 0))

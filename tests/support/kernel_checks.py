"""The kernels for GPUs against torch in float32, on a GPU or, as a program with TRITON_INTERPRET=1, by Triton's interpreter.

As a program it is given Triton's folder. It names each kernel that agrees, or without that setting each that it could compile:
Triton decides when it is imported whether it interprets.
"""

# Triton is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron_dpo.kernels.torch_ops.table import torch_kernels

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def swiglu(kernels: Any, device: str, dtype: torch.dtype, size: int) -> None:
    """[..., 2 * size] -> [..., size], both ways."""
    x, slope = _draw(20, 1, 2 * size, device=device, dtype=dtype), _draw(20, 1, size, device=device, dtype=dtype)
    wide = x.float().requires_grad_()
    gate, up = wide.chunk(2, -1)
    expected = F.silu(gate) * up
    agree(kernels.swiglu(x), expected, dtype)
    agree(kernels.swiglu_backward(x, slope), torch.autograd.grad(expected, wide, slope.float())[0], dtype)


def rms_norm(kernels: Any, device: str, dtype: torch.dtype, size: int) -> None:
    """More tokens than programs, both ways."""
    x, slope = (_draw(kernels._PROGRAMS + 36, 1, size, device=device, dtype=dtype) for _ in range(2))
    gain = _draw(size, device=device)
    wide, wide_gain = x.float().requires_grad_(), gain.clone().requires_grad_()
    expected = F.rms_norm(wide, (size,), wide_gain, 1e-5)
    got, scales = kernels.rms_norm(x, gain, 1e-5)
    agree(got, expected, dtype)
    wanted = torch.autograd.grad(expected, (wide, wide_gain), slope.float())
    for ours, theirs in zip(kernels.rms_norm_backward(x, gain, scales, slope), wanted, strict=True):
        agree(ours, theirs, dtype)


def rotate(kernels: Any, device: str, dtype: torch.dtype, size: int) -> None:
    """All of a head and a part of it."""
    size = min(size, 96)  # of heads
    for turned, heads in ((size, 3), (size // 4 * 2, 32)):
        x = _draw(5, 1, heads, 2 * size, device=device, dtype=dtype)[..., :size]  # a view, as of queries, keys and values
        cosines, sines = (_draw(5, 1, 1, turned, device=device, dtype=dtype) for _ in range(2))
        part = x[..., :turned].float()
        expected = part * cosines.float() - part.roll(turned // 2, -1) * sines.float()
        agree(kernels.rotate(x, cosines, sines, -1), torch.cat((expected, x[..., turned:].float()), -1), dtype)


def log_sum_exp(kernels: Any, device: str, dtype: torch.dtype, size: int) -> None:
    """Of fewer entries than a program reads at once, and of more."""
    for entries in (size, 9000):
        logits = _draw(9, entries, device=device, dtype=dtype) * 10
        agree(kernels.log_sum_exp(logits, None), torch.logsumexp(logits.float(), 1), torch.float32)
        softmax = torch.empty(9, entries, device=device, dtype=dtype)
        agree(kernels.log_sum_exp(logits.float(), softmax), torch.logsumexp(logits.float(), 1), torch.float32)
        agree(softmax, torch.softmax(logits.float(), 1), dtype)


def token_sums(kernels: Any, device: str, dtype: torch.dtype, size: int) -> None:
    """Beside a softmax and without one; places of any logit, of the highest, of the second and of the first of two as high."""
    for entries in (size, 9000):
        x, places = _draw(9, entries, device=device) * 10, torch.randint(entries, (9, 1), device=device)
        places[1::2] = x.argmax(1, keepdim=True)[1::2]
        x[5:7, 0] = x[5:7, entries // 2] = 99.0
        places[5], places[6] = entries // 2, 0
        x[0, -1] = -torch.inf
        below = x.amax(1, keepdim=True) - x
        e, first = (-below).exp(), (x.argmax(1) == places[:, 0]).float()
        expected = torch.stack((e.sum(1), (e * below.clamp(max=1e3)).sum(1), e.square().sum(1)))
        for softmax in (torch.empty(9, entries, device=device, dtype=dtype), None):
            sums = torch.empty(5, 9, device=device)
            agree(kernels.log_sum_exp(x, softmax, places, sums), torch.logsumexp(x, 1), torch.float32)
            assert torch.equal(sums[:2], torch.stack((x.amax(1), first)))
            agree(sums[2:], expected, torch.float32)
            assert softmax is None or off(softmax, torch.softmax(x, 1)) < TOLERANCE[dtype]


def check_members(members: Any, device: str, dtype: torch.dtype) -> None:
    """The members for GPUs against those of torch, as a model calls them."""
    torchs = torch_kernels()
    x, slope, gain = (_draw(9, 1, n, device=device, dtype=dtype) for n in (24, 12, 24))
    agree(members.swiglu(x, None), torchs.swiglu(x, None).float(), dtype)
    agree(members.swiglu_backward(x, slope, None), torchs.swiglu_backward(x, slope, None).float(), dtype)
    gain, wide_slope = gain[0, 0].float(), _draw(9, 1, 24, device=device, dtype=dtype)
    normed, scales = members.rms_norm(x, gain, 1e-5)
    wanted, wanted_scales = torchs.rms_norm(x, gain, 1e-5)
    agree(normed, wanted.float(), dtype)
    agree(scales, wanted_scales, torch.float32)
    ours, theirs = (one.rms_norm_backward(x, gain, scales, wide_slope, True) for one in (members, torchs))
    for grad, expected in zip(ours, theirs, strict=True):
        assert grad is not None
        assert expected is not None
        agree(grad, expected.float(), dtype)
    heads, (cosines, sines) = _draw(9, 1, 2, 16, device=device, dtype=dtype), _draw(2, 9, 1, 1, 8, device=device, dtype=dtype)
    agree(members.rotate(heads, cosines, sines, -1), torchs.rotate(heads, cosines, sines, -1).float(), dtype)
    hidden, weight = _draw(9, 24, device=device, dtype=dtype), _draw(70, 24, device=device, dtype=dtype)
    places, softmax = torch.arange(9, device=device)[:, None], torch.empty(2, 9, 70, device=device, dtype=dtype)
    for kept, softcap in ((None, None), (None, 2.0), (softmax, None), (softmax, 2.0)):
        given, sums = (None, None) if kept is None else kept, torch.empty(2, 5, 9, device=device)
        read, expected = (
            one.read_logits(hidden, weight, places, into, to, softcap)
            for one, into, to in zip((members, torchs), given, sums, strict=True)
        )
        for got, value in zip((*read, sums[0]), (*expected, sums[1]), strict=True):
            agree(got, value, torch.float32)
        if kept is not None:
            agree(softmax[0], softmax[1].float(), dtype)


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """Stop unless `ours` is as near `theirs` as roundings to `dtype` leave it."""
    assert off(ours, theirs) < TOLERANCE[dtype]


def off(ours: Tensor, theirs: Tensor) -> float:
    """How far `ours` is from `theirs`, relative to these."""
    wide, wanted = (x.detach().cpu().float() for x in (ours, theirs))
    return float((wide - wanted).norm() / wanted.norm())


def _draw(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


CHECKS = (swiglu, rms_norm, rotate, log_sum_exp, token_sums)


# what a kernel is given by which name; the rest are integers, and capitals are constants
_TYPES = {
    "gain scales parts logits sums": "*fp32",
    "x grad out softmax cosines sines": "*bf16",
    "places": "*i64",
    "eps direction": "fp32",
}
_CONSTANTS = {"BLOCK": 1024, "KEEP": 1, "SUM": 1, "HEADS": 4, "HALF": 16, "REST": 8}


def compile_for_gpu(name: str, kernel: Any) -> None:
    """Compile a kernel to machine code of an H100, which takes no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = {word: kind for words, kind in _TYPES.items() for word in words.split()}
    names = kernel.arg_names
    signature = {arg: "constexpr" if arg.isupper() else types.get(arg, "i32") for arg in names}
    constants = {(names.index(arg),): value for arg, value in _CONSTANTS.items() if arg in names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"], name


def main(triton: str) -> None:
    """By the interpreter all kernels in both precisions; without it all are compiled."""
    sys.path.append(triton)
    from nemotron_dpo.kernels.gpu import members, triton_kernels

    if os.environ.get("TRITON_INTERPRET") != "1":
        kernels = {name: value for name, value in vars(triton_kernels).items() if hasattr(value, "arg_names")}
        for name, kernel in kernels.items():
            compile_for_gpu(name, kernel)
            print(name)
        return
    triton_kernels._PROGRAMS = 25  # of which each is interpreted, one after the other
    for dtype in TOLERANCE:
        for check in CHECKS:
            torch.manual_seed(0)
            check(triton_kernels, "cpu", dtype, 36)
            print(check.__name__)
        members._serve = lambda *tensors: True  # as if they lay on a GPU
        torch.manual_seed(0)
        check_members(members, "cpu", dtype)
        print("members")


if __name__ == "__main__":
    main(sys.argv[1])

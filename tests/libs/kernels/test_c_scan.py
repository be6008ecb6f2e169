"""The recurrence of Mamba-2 and its convolution in C, as built for several kinds of CPU, against the same token by token in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels.c import scan as scan_in_c
from nemotron_dpo.kernels.c import trees
from nemotron_dpo.kernels.chunks import Chunks, plan
from nemotron_dpo.kernels.protocol import Kernels
from support.recurrences import (
    FORESTS,
    Mamba2,
    Pieces,
    convolution_token_by_token,
    mamba2_inputs,
    mamba2_token_by_token,
    num_tokens,
    random_forest,
    spoiled_scratch,
)

LONG = [(0, 100, -1), (100, 175, 0), (175, 240, 0)]
SHAPES = [(4, 64, 1, 128), (9, 8, 3, 20), (6, 80, 2, 7)]  # heads, their size, groups, size of a state
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def all_of(table: Kernels, of: Sequence[Tensor], grad: Tensor, chunks: Chunks) -> list[Tensor]:
    """The result and the six gradients."""
    x, dt, A, B, C, D = (x.detach() for x in of)
    return [table.scan(x, dt, A, B, C, D, chunks), *table.scan_backward(grad, x, dt, A, B, C, D, chunks)]


def by_definition(of: Mamba2, grad: Tensor, pieces: Pieces) -> list[Tensor]:
    x, dt, A, B, C, D = (x.detach().double().requires_grad_() for x in of)
    y = mamba2_token_by_token(x, dt, A, B, C, D, pieces)
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in (y, x, dt, A, B, C, D)]
    return [y, *torch.autograd.grad(y, (x, dt, A, B, C, D), grad.double(), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_recurrence(c_kernels: Kernels, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """In bfloat16 the results are those of the same inputs in float32, rounded once."""
    for pieces in (*FORESTS.values(), *map(random_forest, range(3)), LONG):
        of = mamba2_inputs(num_tokens(pieces), shape, dtype)
        grad = torch.randn_like(of[0])
        expected = by_definition(of, grad, pieces)
        for chunk in (5, 64, 100):
            results = all_of(c_kernels, of, grad, plan(pieces, chunk))
            for ours, theirs, like in zip(results, expected, (of[0], *of), strict=True):
                assert ours.dtype is like.dtype
                bound = BOUNDS[like.dtype] if like.dtype is torch.bfloat16 else 8e-6
                assert (ours.double() - theirs).norm() <= bound * theirs.norm(), (pieces, chunk)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_pair_does_not_depend_on_its_neighbours(c_kernels: Kernels, dtype: torch.dtype) -> None:
    """To the last bit, nor on the number of threads."""
    pairs = [[(0, 30, -1), (30, 105, 0), (105, 140, 0)], [(0, 1, -1), (1, 2, 0), (2, 3, 0)], [(0, 70, -1), (70, 80, 0)]]
    pieces, firsts = [], []
    for pair in pairs:
        firsts.append(pieces[-1][1] if pieces else 0)
        number = len(pieces)
        pieces += [(a + firsts[-1], b + firsts[-1], parent if parent < 0 else number) for a, b, parent in pair]
    of = mamba2_inputs(pieces[-1][1], (6, 16, 2, 24), dtype)
    grad = torch.randn_like(of[0])
    together, threads = all_of(c_kernels, of, grad, plan(pieces)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for pair, first in zip(pairs, firsts, strict=True):
            mine = slice(first, first + pair[-1][1])
            own = [x if place in (2, 5) else x[mine] for place, x in enumerate(of)]
            alone = all_of(c_kernels, own, grad[mine], plan(pair))
            for place in (0, 1, 2, 4, 5):  # the gradients of A and D are sums over all pairs
                assert torch.equal(alone[place], together[place][mine])
    finally:
        torch.set_num_threads(threads)


def test_tensors_that_are_parts_of_others(c_kernels: Kernels) -> None:
    """As the convolution leaves x, B and C: beside one another."""
    chunks = plan(LONG, 32)
    whole = torch.randn(240, 4 * 16 + 2 * 2 * 24)
    x, B, C = (part.unflatten(1, (-1, n)) for part, n in zip(whole.split((64, 48, 48), 1), (16, 24, 24), strict=True))
    _, dt, A, _, _, D = mamba2_inputs(240, (4, 16, 2, 24), torch.float32)
    grad = torch.randn(4, 240, 16).transpose(0, 1)
    apart = all_of(c_kernels, (x, dt, A, B, C, D), grad, chunks)
    packed = all_of(c_kernels, [part.contiguous() for part in (x, dt, A, B, C, D)], grad.contiguous(), chunks)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart, packed, strict=True))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("pieces", [LONG, FORESTS["single tokens"], random_forest(3)], ids=["long", "short", "random"])
def test_scratch_memory_suffices_and_is_written_before_it_is_read(
    c_kernels: Kernels, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in SHAPES:
        for chunk in (7, 64):
            of = mamba2_inputs(num_tokens(pieces), shape, torch.float32)
            grad = torch.randn_like(of[0])
            clean = all_of(c_kernels, of, grad, plan(pieces, chunk))
            with spoiled_scratch(monkeypatch, scan_in_c, trees):
                again = all_of(c_kernels, of, grad, plan(pieces, chunk))
            assert all(torch.equal(x, y) for x, y in zip(clean, again, strict=True))


def test_what_the_kernel_does_not_take_goes_to_torchs_operations(c_kernels: Kernels) -> None:
    of = mamba2_inputs(240, SHAPES[1])
    results = all_of(c_kernels, of, torch.randn_like(of[0]), plan(LONG))
    assert all(x.dtype is torch.float64 for x in results)
    with pytest.raises(ValueError, match="a row of 239 tokens has pieces up to token 240"):
        all_of(c_kernels, [x.float()[:239] for x in of], of[0][:239], plan(LONG))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_convolution_follows_each_path(c_kernels: Kernels, dtype: torch.dtype) -> None:
    """Channels that are and are not whole vectors; a part of a wider tensor; the threads do not count."""
    threads = torch.get_num_threads()
    for channels, width in ((3, 2), (300, 4), (64, 7)):
        for pieces in (*FORESTS.values(), *map(random_forest, range(3)), LONG):
            x, grad = (torch.randn(num_tokens(pieces), channels + 5).to(dtype)[:, 2 : channels + 2] for _ in range(2))
            weight, bias = torch.randn(channels, width).to(dtype), torch.randn(channels).to(dtype)
            chunks = plan(pieces)
            results = [c_kernels.convolve(x, weight, bias, chunks), *c_kernels.convolve_backward(grad, x, weight, chunks)]
            of = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
            y = convolution_token_by_token(of[0], of[1], of[2], pieces)
            expected = [y, *(torch.zeros_like(each) for each in of)]
            if y.requires_grad:
                grads = torch.autograd.grad(y, of, grad.double(), allow_unused=True, materialize_grads=True)
                expected = [y, *grads]
            for ours, theirs in zip(results, expected, strict=True):
                assert ours.dtype is dtype
                assert (ours.double() - theirs).norm() <= BOUNDS[dtype] * theirs.norm(), pieces
            try:
                torch.set_num_threads(2)
                again = c_kernels.convolve_backward(grad, x, weight, chunks)
            finally:
                torch.set_num_threads(threads)
            assert all(torch.equal(one, other) for one, other in zip(results[1:], again, strict=True))

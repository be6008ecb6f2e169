"""The gated delta rule in C, as built for several kinds of CPU, against the same token by token in float64, and torch's."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels.c import delta, trees
from nemotron_dpo.kernels.chunks import Chunks, plan
from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.torch_ops import gated_delta as by_torch
from support.recurrences import (
    FORESTS,
    Pieces,
    gated_delta_inputs,
    gated_delta_token_by_token,
    num_tokens,
    random_forest,
    spoiled_scratch,
)

LONG = [(0, 100, -1), (100, 175, 0), (175, 240, 0)]
SHAPES = [(4, 128, 2, 128), (9, 8, 3, 20), (12, 20, 2, 7)]  # value heads, their size, heads of keys, their size
BOUNDS = {torch.float32: 4e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def all_of(table: Kernels, of: Sequence[Tensor], grad: Tensor, chunks: Chunks) -> list[Tensor]:
    """The result and the five gradients."""
    inputs = [x.detach().requires_grad_() for x in of]
    q, k, v, g, beta = inputs
    y = table.gated_delta(q, k, v, g, beta, chunks)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def by_definition(of: Sequence[Tensor], grad: Tensor, pieces: Pieces) -> list[Tensor]:
    q, k, v, g, beta = inputs = [x.detach().double().requires_grad_() for x in of]
    y = gated_delta_token_by_token(q, k, v, g, beta, pieces)
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in (v, *inputs)]
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.double(), allow_unused=True, materialize_grads=True)]


@functools.cache
def cases(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[tuple[Pieces, list[Tensor], Tensor, list[Tensor]]]:
    """Pieces, inputs, the gradient of the result and what is due: of all builds, since the definition takes long."""
    found = []
    for pieces in (*FORESTS.values(), random_forest(0), LONG):
        of = gated_delta_inputs(num_tokens(pieces), shape, dtype)
        grad = torch.randn_like(of[2])
        found.append((pieces, of, grad, by_definition(of, grad, pieces)))
    return found


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_recurrence(c_kernels: Kernels, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """In bfloat16 the results are those of the same inputs in float32, rounded once."""
    for pieces, of, grad, expected in cases(shape, dtype):
        for chunk in (5, 64, 100):
            results = all_of(c_kernels, of, grad, plan(pieces, chunk))
            for place, (ours, theirs, like) in enumerate(zip(results, expected, (of[2], *of), strict=True)):
                assert ours.dtype is like.dtype
                assert (ours.double() - theirs).norm() <= BOUNDS[like.dtype] * theirs.norm(), (place, pieces, chunk)


def test_it_is_what_torchs_operations_compute(c_kernels: Kernels) -> None:
    """To rounding, of chunks and heads as models have them; g of a head that forgets in an instant, and of one that never does."""
    of = gated_delta_inputs(240, (8, 64, 4, 64), torch.float32)
    with torch.no_grad():
        of[3][:, 0], of[3][:, 1] = -1e4, 0
    grad, chunks = torch.randn_like(of[2]), plan(LONG)
    ours = all_of(c_kernels, of, grad, chunks)
    inputs = [x.detach().requires_grad_() for x in of]
    q, k, v, g, beta = inputs
    y = by_torch.gated_delta(q, k, v, g, beta, chunks)
    for one, other in zip(ours, [y.detach(), *torch.autograd.grad(y, inputs, grad)], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


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
    of = gated_delta_inputs(pieces[-1][1], (6, 16, 2, 24), dtype)
    grad = torch.randn_like(of[2])
    together, threads = all_of(c_kernels, of, grad, plan(pieces)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for pair, first in zip(pairs, firsts, strict=True):
            mine = slice(first, first + pair[-1][1])
            alone = all_of(c_kernels, [x[mine] for x in of], grad[mine], plan(pair))
            assert all(torch.equal(one, whole[mine]) for one, whole in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_tensors_that_are_parts_of_others(c_kernels: Kernels) -> None:
    """As the convolution leaves queries, keys and values: beside one another."""
    chunks = plan(LONG, 32)
    whole = torch.randn(240, 2 * 2 * 24 + 4 * 16) * 0.2
    q, k, v = (part.unflatten(1, (-1, n)) for part, n in zip(whole.split((48, 48, 64), 1), (24, 24, 16), strict=True))
    *_, g, beta = gated_delta_inputs(240, (4, 16, 2, 24), torch.float32)
    grad = torch.randn(4, 240, 16).transpose(0, 1)
    apart = all_of(c_kernels, (q, k, v, g, beta), grad, chunks)
    packed = all_of(c_kernels, [part.contiguous() for part in (q, k, v, g, beta)], grad.contiguous(), chunks)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart, packed, strict=True))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("pieces", [LONG, FORESTS["single tokens"], random_forest(3)], ids=["long", "short", "random"])
def test_scratch_memory_suffices_and_is_written_before_it_is_read(
    c_kernels: Kernels, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in SHAPES:
        for chunk in (7, 64):
            of = gated_delta_inputs(num_tokens(pieces), shape, torch.float32)
            grad = torch.randn_like(of[2])
            clean = all_of(c_kernels, of, grad, plan(pieces, chunk))
            with spoiled_scratch(monkeypatch, delta, trees):
                again = all_of(c_kernels, of, grad, plan(pieces, chunk))
            assert all(torch.equal(x, y) for x, y in zip(clean, again, strict=True))


def test_what_the_kernel_does_not_take_goes_to_torchs_operations(c_kernels: Kernels) -> None:
    of = gated_delta_inputs(240, SHAPES[1])
    assert all(x.dtype is torch.float64 for x in all_of(c_kernels, of, torch.randn_like(of[2]), plan(LONG)))
    with pytest.raises(ValueError, match="a row of 239 tokens has pieces up to token 240"):
        all_of(c_kernels, [x.float()[:239] for x in of], of[2].float()[:239], plan(LONG))

"""Recurrences over forests of pieces by torch's operations, against the same token by token in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels.recurrence import causal_conv, plan, scan
from nemotron_dpo.kernels.torch_ops.convolution import earlier_tokens
from support import recurrences
from support.recurrences import FORESTS, mamba2_inputs, num_tokens, random_forest

pytestmark = pytest.mark.usefixtures("torch_alone")

FORWARD, BACKWARD = 4e-14, 5e-13  # of the largest value
SHAPES = [  # heads, their size, groups, size of a state
    (2, 3, 1, 5),
    (4, 2, 2, 3),
    (3, 1, 3, 1),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of the largest value."""
    assert ours.dtype is theirs.dtype
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item() if theirs.numel() else 0.0


def gradients(y: Tensor, of: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    if not y.requires_grad:  # the definition of no tokens
        return [torch.zeros_like(x) for x in of]
    return list(torch.autograd.grad(y, of, slope, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mamba2_is_the_recurrence(shape: tuple[int, int, int, int]) -> None:
    for pieces in (*FORESTS.values(), *map(random_forest, range(6))):
        of = mamba2_inputs(num_tokens(pieces), shape)
        slope = torch.randn_like(of[0])
        expected = recurrences.mamba2_token_by_token(*of, pieces)
        wanted = gradients(expected, of, slope)
        for chunk in (1, 2, 3, 8, 64, 256):
            y = scan(*of, plan(pieces, chunk))
            assert off(y, expected) <= FORWARD, (pieces, chunk)
            for name, ours, theirs in zip(("x", "dt", "A", "B", "C", "D"), gradients(y, of, slope), wanted, strict=True):
                assert off(ours, theirs) <= BACKWARD, (name, pieces, chunk)


@pytest.mark.slow
def test_gradcheck() -> None:
    pieces = FORESTS["a path"]
    of = mamba2_inputs(num_tokens(pieces), SHAPES[1])
    of[1].data += 0.01  # numeric differences take it below zero
    chunks = plan(pieces, 3)
    assert torch.autograd.gradcheck(lambda x, dt, A, B, C, D: scan(x, dt, A, B, C, D, chunks), of)
    x, weight, bias = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((num_tokens(pieces), 2), (2, 4), (2,))
    )
    assert torch.autograd.gradcheck(lambda x, weight, bias: causal_conv(x, weight, bias, chunks), (x, weight, bias))


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_the_convolution_follows_each_path(width: int) -> None:
    for pieces in (*FORESTS.values(), *map(random_forest, range(12))):
        x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((num_tokens(pieces), 3), (3, width), (3,)))
        of = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
        slope = torch.randn_like(x)
        for shift, some in ((bias, of), (None, of[:2])):
            expected = recurrences.convolution_token_by_token(x, weight, shift, pieces)
            wanted = gradients(expected, some, slope)
            y = causal_conv(x, weight, shift, plan(pieces, 4))
            assert off(y, expected) <= FORWARD, pieces
            for ours, theirs in zip(gradients(y, some, slope), wanted, strict=True):
                assert off(ours, theirs) <= BACKWARD, pieces


def test_earlier_tokens_are_those_of_the_path() -> None:
    chunks = plan([(0, 3, -1), (3, 4, 0), (4, 6, 0), (6, 7, 1)])
    assert earlier_tokens(chunks, 3, 8).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1],
        [-1, 0, 1, 2, 2, 4, 3, -1],
        [-1, -1, 0, 1, 1, 2, 2, -1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_rounded_at_the_end_alone(dtype: torch.dtype) -> None:
    pieces, shape = [(0, 100, -1), (100, 170, 0), (170, 300, 0)], (4, 8, 2, 16)
    of = mamba2_inputs(302, shape, dtype)
    x, dt, A, B, C, D = (x.detach().double().requires_grad_() for x in of)
    wide = x, dt, A, B, C, D
    slope = torch.randn_like(of[0])
    y, expected = scan(*of, plan(pieces)), recurrences.mamba2_token_by_token(*wide, pieces)
    pairs = zip([y, *gradients(y, of, slope)], [expected, *gradients(expected, wide, slope.double())], strict=True)
    for (ours, theirs), narrow in zip(pairs, [of[0], *of], strict=True):
        assert ours.dtype is narrow.dtype
        bound = 2.0**-8 if narrow.dtype is torch.bfloat16 else 4e-6
        assert (ours.double() - theirs).norm() <= bound * theirs.norm()


def test_what_is_not_a_number_is_not_hidden_and_stays_in_its_response() -> None:
    pieces = FORESTS["pair"]
    of = mamba2_inputs(num_tokens(pieces), SHAPES[0])
    of[0].data[8] = torch.nan  # of the chosen response
    for chunk in (2, 64):
        bad = scan(*of, plan(pieces, chunk)).isnan().any(-1).any(-1).nonzero().flatten().tolist()
        assert bad in ([8, 9, 10, 11], [7, 8, 9, 10, 11])  # zero times what is no number is none, in its own chunk
    bad = causal_conv(of[0][:, 0], torch.ones(3, 3, dtype=torch.float64), None, plan(pieces)).isnan().any(-1).tolist()
    assert bad == [8 <= token < 11 for token in range(num_tokens(pieces))]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([(0, 3, 0)], "piece 0 has parent 0, which is none of the pieces before it"),
        ([(0, 3, -2)], "piece 0 has parent -2"),
        ([(3, 2, -1)], "piece 0 goes from 3 to 2"),
        ([(0, 3, -1), (2, 5, 0)], "two pieces have token 2"),
    ],
)
def test_pieces_that_are_no_forest(pieces: list[tuple[int, int, int]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(pieces)


def test_a_row_shorter_than_its_pieces() -> None:
    of = mamba2_inputs(5, SHAPES[0])
    with pytest.raises(ValueError, match="a row of 5 tokens has pieces up to token 6"):
        scan(*of, plan([(0, 6, -1)]))
    with pytest.raises(ValueError, match="a row of 5 tokens"):
        causal_conv(of[0][:, 0], torch.ones(3, 2, dtype=torch.float64), None, plan([(0, 6, -1)]))
    with pytest.raises(ValueError, match="a chunk of 0 tokens"):
        plan([(0, 6, -1)], 0)

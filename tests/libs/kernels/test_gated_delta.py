"""The gated delta rule over forests of pieces, against the same token by token in float64 and against transformers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels.recurrence import gated_delta, plan
from support.recurrences import FORESTS, gated_delta_inputs, gated_delta_token_by_token, num_tokens, random_forest

pytestmark = pytest.mark.usefixtures("torch_alone")

FORWARD, BACKWARD = 4e-14, 5e-13  # of the largest value
SHAPES = [(2, 3, 1, 5), (4, 2, 2, 3), (3, 1, 3, 1)]  # value heads, their size, heads of keys, their size
LONG = [(0, 100, -1), (100, 170, 0), (170, 300, 0)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of the largest value."""
    assert ours.dtype is theirs.dtype
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()


def gradients(y: Tensor, of: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    if not y.requires_grad:  # the definition of no tokens
        return [torch.zeros_like(x) for x in of]
    return list(torch.autograd.grad(y, of, slope, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_recurrence(shape: tuple[int, int, int, int]) -> None:
    for pieces in (*FORESTS.values(), *map(random_forest, range(6))):
        q, k, v, g, beta = of = gated_delta_inputs(num_tokens(pieces), shape)
        slope = torch.randn_like(v)
        expected = gated_delta_token_by_token(q, k, v, g, beta, pieces)
        wanted = gradients(expected, of, slope)
        for chunk in (1, 3, 8, 64, 256):
            y = gated_delta(q, k, v, g, beta, plan(pieces, chunk))
            assert off(y, expected) <= FORWARD, (pieces, chunk)
            for name, ours, theirs in zip(("q", "k", "v", "g", "beta"), gradients(y, of, slope), wanted, strict=True):
                assert off(ours, theirs) <= BACKWARD, (name, pieces, chunk)


@pytest.mark.slow
def test_gradcheck() -> None:
    chunks = plan(FORESTS["a path"], 3)
    q, k, v, g, beta = gated_delta_inputs(num_tokens(FORESTS["a path"]), SHAPES[1])
    assert torch.autograd.gradcheck(lambda q, k, v, g, beta: gated_delta(q, k, v, g, beta, chunks), (q, k, v, g, beta))


def test_two_sequences_of_transformers_are_a_pair() -> None:
    """Each response behind its prompt, by both of transformers' paths, in float32."""
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    q, k, v, g, beta = (x.detach() for x in gated_delta_inputs(300, (8, 16, 4, 32), torch.float32))
    g = g.clamp(min=-2)  # their chunks take differences of large sums in float32
    y = gated_delta(q * 32**0.5, k, v, g, beta, plan(LONG)) * 32**-0.5  # they scale queries themselves
    for first, last in ((100, 170), (170, 300)):
        tokens = torch.cat((torch.arange(100), torch.arange(first, last)))
        sequence = [x[tokens][None] for x in (q * 32**0.5, k, v, g, beta)]
        for rule in (theirs.torch_chunk_gated_delta_rule, theirs.torch_recurrent_gated_delta_rule):
            assert off(y[tokens], rule(*sequence)[0][0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_rounded_at_the_end_alone(dtype: torch.dtype) -> None:
    of = gated_delta_inputs(302, (4, 8, 2, 16), dtype)
    wide = [x.detach().double().requires_grad_() for x in of]
    slope = torch.randn_like(of[2])
    q, k, v, g, beta = of
    y, expected = gated_delta(q, k, v, g, beta, plan(LONG)), gated_delta_token_by_token(*wide, pieces=LONG)
    pairs = zip([y, *gradients(y, of, slope)], [expected, *gradients(expected, wide, slope.double())], strict=True)
    for (ours, theirs), narrow in zip(pairs, [of[2], *of], strict=True):
        assert ours.dtype is narrow.dtype
        bound = 2.0**-8 if narrow.dtype is torch.bfloat16 else 4e-6
        assert (ours.double() - theirs).norm() <= bound * theirs.norm()

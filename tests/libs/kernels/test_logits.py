"""Logits of bfloat16 in float32: by the kernel as it is built for several kinds of CPU, and by torch, against float64."""

from __future__ import annotations

import ctypes
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels import logits
from nemotron_dpo.kernels.c import logits as c_logits
from nemotron_dpo.kernels.torch_ops.logits import read_logits
from nemotron_dpo.policy.logprobs import response_logps, slope_of, trained_logps

# tokens, features, entries: of a tile, a panel and a block of features less, as many, more; none at all
SIZES = [(0, 2, 1), (1, 2, 1), (5, 6, 70), (48, 32, 64), (49, 34, 200), (100, 1026, 130), (13, 7, 40)]
WAYS = ["chosen", "torch"]


def draw(tokens: int, size: int, entries: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens + size)
    hidden, weight = torch.randn(tokens, size).bfloat16(), torch.randn(entries, size).bfloat16()
    return hidden, weight, torch.randint(entries, (tokens,))


@pytest.fixture(params=WAYS)
def _every_way(request: pytest.FixtureRequest) -> None:
    if request.param == "torch":
        request.getfixturevalue("torch_alone")


@pytest.mark.usefixtures("_every_way")
def test_a_logit_is_not_rounded_to_bfloat16() -> None:
    """Logits 16 + 1/32 and 16, which bfloat16 cannot tell apart."""
    hidden = torch.tensor([[16, 2.0**-5]]).bfloat16().requires_grad_()
    weight = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).bfloat16()
    got = response_logps(hidden, weight, torch.tensor([0]))
    p = 1 / (1 + math.exp(-1 / 32))
    assert got.item() == pytest.approx(math.log(p), abs=2e-6)  # -0.677644; rounded logits give -ln 2 = -0.693147
    (grad,) = torch.autograd.grad(got.sum(), hidden)
    assert grad.tolist()[0] == pytest.approx([0, 1 - p], abs=2**-9)


def test_the_kernel_agrees_with_float64(c_library: ctypes.CDLL) -> None:
    for tokens, size, entries in SIZES:
        hidden, weight, places = draw(tokens, size, entries)
        if not c_logits.serves(c_library, hidden, weight):
            continue  # an odd number of features, or a CPU without products of bfloat16
        expected = hidden.double() @ weight.double().t()
        softmax = torch.full((tokens, entries), torch.nan, dtype=torch.bfloat16)
        at, sums = c_logits.read_logits(c_library, hidden, weight, places[:, None], softmax)
        bound = 1e-6 * math.sqrt(size) * 4
        assert torch.allclose(at.double(), expected.gather(1, places[:, None])[:, 0], rtol=0, atol=bound)
        assert torch.allclose(sums.double(), expected.logsumexp(1), rtol=0, atol=bound)
        assert torch.allclose(softmax.double(), expected.softmax(1), rtol=1.02 * 2**-8, atol=1e-37)
        alone, sums_alone = c_logits.read_logits(c_library, hidden, weight, places[:, None], None, torch.empty(5, tokens))
        assert torch.equal(alone, at)
        assert torch.equal(sums_alone, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_logits_and_what_flows_back_through_the_cap_are_those_of_float64(
    c_library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    """Whichever backend: the softmax is times 1 - tanh^2, as autograd has it."""
    for tokens, size, entries in SIZES:
        hidden, weight, places = (x.to(dtype) if x.is_floating_point() else x for x in draw(tokens, size, entries))
        x = (hidden.double() @ weight.double().t()).requires_grad_()
        expected, bound = 9 * torch.tanh(x / 9), 1e-6 * math.sqrt(size) * 4
        (due,) = torch.autograd.grad(expected.logsumexp(1).sum(), x)
        for read in (partial(c_logits.read_logits, c_library), read_logits):
            softmax = torch.full((tokens, entries), torch.nan, dtype=dtype)
            at, sums = read(hidden, weight, places[:, None], softmax, None, 9.0)
            assert torch.allclose(at.double(), expected.gather(1, places[:, None])[:, 0], rtol=0, atol=bound)
            assert torch.allclose(sums.double(), expected.logsumexp(1), rtol=0, atol=bound)
            assert torch.allclose(softmax.double(), due, rtol=1.02 * 2**-8 if dtype is torch.bfloat16 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_a_block_are_those_of_float64(c_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    """In C, beside its own products and beside those of torch, and by torch."""
    for tokens, size, entries in SIZES:
        hidden, weight, places = draw(tokens, size, entries)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        x = hidden.double() @ weight.double().t()
        highest = x.amax(1, keepdim=True)
        places[::2] = x.argmax(1)[::2]
        e, first = (x - highest).exp(), x.argmax(1) == places
        expected = torch.stack((highest[:, 0], first, e.sum(1), (e * (highest - x)).sum(1), e.square().sum(1)))
        for read in (partial(c_logits.read_logits, c_library), read_logits):
            for softmax in (None, torch.empty(tokens, entries, dtype=dtype)):
                got = torch.full((5, tokens), torch.nan)
                read(hidden, weight, places[:, None], softmax, got)
                bound = 4e-6 * math.sqrt(size)
                assert torch.allclose(got[0].double(), expected[0], rtol=0, atol=bound)
                assert torch.equal(got[1].double(), expected[1])
                assert torch.allclose(got[2:].double(), expected[2:], rtol=4 * bound, atol=bound)


def test_of_equal_logits_the_first_is_the_highest_and_impossible_ones_count_nothing(c_library: ctypes.CDLL) -> None:
    """Entries 3 and 20 of 40 are alike, and the last is -inf."""
    weight = torch.zeros(40, 2)
    weight[[3, 20], 0], weight[39, 0] = 2.0, -math.inf
    places = torch.tensor([[3], [20], [0], [39]])
    for dtype in (torch.float32, torch.bfloat16):
        for read in (partial(c_logits.read_logits, c_library), read_logits):
            got = torch.empty(5, 4)
            read(torch.tensor([[1.0, 1.0]]).repeat(4, 1).to(dtype), weight.to(dtype), places, None, got)
            assert got[:2].tolist() == [[2.0] * 4, [1.0, 0.0, 0.0, 0.0]]
            rest = 37 * math.exp(-2)
            for sums, wanted in zip(got[2:], (2 + rest, 2 * rest, 2 + 37 * math.exp(-4)), strict=True):
                assert sums.tolist() == pytest.approx([wanted] * 4, rel=1e-6)


def test_what_is_asked_for_besides_changes_no_bit_of_the_rest(c_library: ctypes.CDLL) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, places = draw(100, 34, 200)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        for read in (partial(c_logits.read_logits, c_library), read_logits):
            kept = torch.empty(2, 100, 200, dtype=dtype)
            plain = read(hidden, weight, places[:, None], kept[0], None)
            asked = read(hidden, weight, places[:, None], kept[1], torch.empty(5, 100))
            assert all(torch.equal(one, other) for one, other in zip(plain, asked, strict=True))
            assert torch.equal(kept[0], kept[1])


@pytest.mark.usefixtures("two_threads")
def test_a_token_does_not_depend_on_its_neighbours_nor_on_threads(c_library: ctypes.CDLL) -> None:
    """To the last bit: so policy and reference agree, however their rows are packed."""
    hidden, weight, places = draw(100, 1026, 130)
    if not c_logits.serves(c_library, hidden, weight):
        pytest.skip("this CPU has no kernel")
    at, sums = c_logits.read_logits(c_library, hidden, weight, places[:, None], None)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for part in (slice(0, 7), slice(7, 8), slice(8, 100)):
            own = c_logits.read_logits(c_library, hidden[part], weight, places[part, None], None)
            assert torch.equal(own[0], at[part])
            assert torch.equal(own[1], sums[part])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("_every_way")
def test_what_is_not_finite_is_not_hidden_and_spreads_no_further() -> None:
    hidden, weight, targets = draw(60, 32, 70)
    fine = response_logps(hidden, weight, targets)
    for value in (math.nan, math.inf):
        hidden[50, 3] = value
        got = response_logps(hidden, weight, targets)
        assert got.isnan().nonzero().flatten().tolist() == [50]
        assert torch.equal(got[:50], fine[:50])


@pytest.mark.usefixtures("two_threads")
def test_scratch_memory_suffices_and_is_written_before_it_is_read(
    c_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []

    def spoiled(_: str, size: int) -> Tensor:
        made.append(torch.full((size + 64,), torch.nan))
        return made[-1]

    for tokens, size, entries in SIZES[1:]:
        hidden, weight, places = draw(tokens, size, entries)
        if not c_logits.serves(c_library, hidden, weight):
            continue
        clean = c_logits.read_logits(c_library, hidden, weight, places[:, None], None)
        with monkeypatch.context() as patched:
            patched.setattr(c_logits, "scratch", spoiled)
            again = c_logits.read_logits(c_library, hidden, weight, places[:, None], None)
        assert all(torch.equal(x, y) for x, y in zip(clean, again, strict=True))
        assert all(one[-64:].isnan().all() for one in made)


@pytest.mark.usefixtures("_every_way")
def test_gradients_kept_or_made_again_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "BLOCK_ENTRIES", 64)
    hidden, weight, targets = draw(90, 32, 200)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in leaves]
    expected = (wide[0] @ wide[1].t()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    wanted = torch.autograd.grad(expected.square().sum(), wide)

    def loss(logps: Tensor) -> Tensor:
        return logps.square().sum()

    for got in (response_logps(*leaves, targets), trained_logps(*leaves, targets, slope_of(loss), [slice(0, 90)])):
        assert torch.allclose(got.double(), expected, rtol=0, atol=2e-5)
        for ours, theirs in zip(torch.autograd.grad(loss(got), leaves), wanted, strict=True):
            assert (ours.double() - theirs).norm() < 2**-8 * theirs.norm()

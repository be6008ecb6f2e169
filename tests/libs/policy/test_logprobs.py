"""Chunked response log-probs against torch's own log_softmax, values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels import logits
from nemotron_dpo.policy.logprobs import response_logps, slope_of, trained_logps

SIZES = [(1, 512, 512), (7, 3, 11), (12, 4, 4), (5, 1, 3), (6, 6, 1)]


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(rows, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True), torch.randint(11, (rows,))


@pytest.fixture
def few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "BLOCK_ENTRIES", 4)


@pytest.mark.parametrize(("rows", "chunk", "entries"), SIZES)
def test_values_and_gradients_equal_log_softmax(rows: int, chunk: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(logits, "BLOCK_ENTRIES", entries)
    hidden, weight, targets = inputs(rows)
    slope = torch.randn(rows)
    for softcap in (None, 1.5):  # of logits that reach 6
        full = hidden @ weight.t() if softcap is None else softcap * torch.tanh(hidden @ weight.t() / softcap)
        expected = full.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        wanted = torch.autograd.grad((expected * slope).sum(), (hidden, weight))
        got = response_logps(hidden, weight, targets, softcap=softcap)
        assert torch.allclose(got, expected, atol=1e-6)
        for ours, theirs in zip(torch.autograd.grad((got * slope).sum(), (hidden, weight)), wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def loss_of(sizes: list[int], logps: Tensor) -> Tensor:
    """Of responses of these lengths: not linear in any log-prob of one, and without those of another."""
    return torch.stack([part.sum().square() for part in logps.split(sizes)]).sum()


@pytest.mark.parametrize("sizes", [[7], [1, 6], [3, 0, 2, 2]])
@pytest.mark.usefixtures("few_entries")
def test_gradients_made_with_the_log_probs_are_those_made_later(sizes: list[int]) -> None:
    hidden, weight, targets = inputs(7)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    for softcap in (None, 1.5):
        expected = response_logps(hidden, weight, targets, softcap=softcap)
        wanted = torch.autograd.grad(loss_of(sizes, expected), (hidden, weight))
        got = trained_logps(hidden, weight, targets, slope_of(partial(loss_of, sizes)), parts, softcap=softcap)
        assert torch.allclose(got, expected, atol=1e-6)
        for ours, theirs in zip(torch.autograd.grad(loss_of(sizes, got), (hidden, weight)), wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.usefixtures("few_entries")
def test_weights_get_their_gradient_where_it_is_added_up_or_none_at_all() -> None:
    hidden, weight, targets = inputs(7)
    got = response_logps(hidden, weight, targets)
    _, wanted = torch.autograd.grad(loss_of([7], got), (hidden, weight))
    weight.main_grad = torch.ones(11, 8)  # type: ignore[attr-defined] - megatron-core's mark on a parameter
    loss_of([7], trained_logps(hidden, weight, targets, slope_of(partial(loss_of, [7])), [slice(0, 7)])).backward()
    assert weight.grad is None
    assert torch.allclose(weight.main_grad, 1 + wanted, atol=1e-5)  # type: ignore[attr-defined] - megatron-core's mark on a parameter
    frozen = weight.detach()
    alone = hidden.detach().requires_grad_()
    loss_of([7], trained_logps(alone, frozen, targets, slope_of(partial(loss_of, [7])), [slice(0, 7)])).backward()
    assert torch.equal(alone.grad, hidden.grad)  # type: ignore[arg-type] - it has one after backward


def test_another_loss_than_the_one_whose_slope_was_given_is_an_error() -> None:
    hidden, weight, targets = inputs(7)
    got = trained_logps(hidden, weight, targets, slope_of(partial(loss_of, [3, 4])), [slice(0, 3), slice(3, 7)])
    with pytest.raises(RuntimeError, match="not the one whose slope was given"):
        got.sum().backward()
    across = trained_logps(hidden, weight, targets, slope_of(partial(loss_of, [7])), [slice(0, 3), slice(3, 7)])
    with pytest.raises(RuntimeError, match="not a sum over pairs"):
        loss_of([7], across).backward()


def test_bfloat16_weights_are_reduced_in_float32() -> None:
    hidden, weight = torch.full((1, 4), 1.0, dtype=torch.bfloat16), torch.zeros(1000, 4, dtype=torch.bfloat16)
    got = response_logps(hidden, weight, torch.tensor([3]))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(-6.907755, abs=1e-5)  # -ln 1000, which bfloat16 would round to -6.90625


def test_the_gradient_of_a_confident_token_is_not_that_of_a_rounded_probability() -> None:
    hidden = torch.full((1, 4), 1.0, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(100, 4, dtype=torch.bfloat16)
    weight[7] = 3.0  # p is 0.9994, which bfloat16 rounds to 1
    got = response_logps(hidden, weight, torch.tensor([7]))
    (grad,) = torch.autograd.grad(got.sum(), hidden)
    assert grad[0, 0].item() == pytest.approx(3 * (1 - got.exp().item()), rel=0.01)

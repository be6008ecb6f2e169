"""Chunked response log-probs against torch's own log_softmax, values and gradients."""

from __future__ import annotations

import pytest
import torch

from nemotron_dpo.policy import logprobs


@pytest.mark.parametrize(("rows", "chunk", "entries"), [(1, 512, 512), (7, 3, 11), (12, 4, 4), (5, 1, 3), (6, 6, 1)])
def test_values_and_gradients_equal_log_softmax(rows: int, chunk: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(logprobs, "BLOCK_ENTRIES", entries)
    torch.manual_seed(rows)
    hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets, slope = torch.randint(11, (rows,)), torch.randn(rows)
    expected = (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    wanted = torch.autograd.grad((expected * slope).sum(), (hidden, weight))
    got = logprobs.response_logps(hidden, weight, targets)
    assert torch.allclose(got, expected, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad((got * slope).sum(), (hidden, weight)), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_bfloat16_weights_are_reduced_in_float32() -> None:
    hidden, weight = torch.full((1, 4), 1.0, dtype=torch.bfloat16), torch.zeros(1000, 4, dtype=torch.bfloat16)
    got = logprobs.response_logps(hidden, weight, torch.tensor([3]))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(-6.907755, abs=1e-5)  # -ln 1000, which bfloat16 would round to -6.90625


def test_the_gradient_of_a_confident_token_is_not_that_of_a_rounded_probability() -> None:
    hidden = torch.full((1, 4), 1.0, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(100, 4, dtype=torch.bfloat16)
    weight[7] = 3.0  # p is 0.9994, which bfloat16 rounds to 1
    got = logprobs.response_logps(hidden, weight, torch.tensor([7]))
    (grad,) = torch.autograd.grad(got.sum(), hidden)
    assert grad[0, 0].item() == pytest.approx(3 * (1 - got.exp().item()), rel=0.01)

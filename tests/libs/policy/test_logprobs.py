"""Chunked response log-probs against torch's own log_softmax, values and gradients."""

from __future__ import annotations

import pytest
import torch

from nemotron_dpo.policy import logprobs


@pytest.mark.parametrize(("rows", "chunk"), [(1, 512), (7, 3), (12, 4), (5, 1)])
def test_values_and_gradients_equal_log_softmax(rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
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

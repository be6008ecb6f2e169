"""The noise floor, from changes that are easy to square by eye."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nemotron_dpo.training import noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_weight_of_257_moves_by_one_unit_and_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(8)).to(dtype)
    before = [weight.clone() for weight in model.parameters()]
    epsilon = torch.finfo(dtype).eps
    with noise.moved_by_one_unit(model):
        for index, (weight, was) in enumerate(zip(model.parameters(), before, strict=True)):
            moved = (weight != was).flatten().nonzero().flatten().tolist()
            assert moved == list(range(index % min(257, was.numel()), was.numel(), 257))
            assert ((weight - was).abs() <= epsilon * was.abs() + torch.finfo(dtype).tiny).all()
    assert all(torch.equal(weight, was) for weight, was in zip(model.parameters(), before, strict=True))


def test_weights_are_restored_where_measuring_fails() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.clone()
    with pytest.raises(RuntimeError, match="out of memory"), noise.moved_by_one_unit(model):
        raise RuntimeError("out of memory")
    assert torch.equal(model.weight, before)


def test_the_floor_of_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise.parallel, "sum_over_job", lambda values: values + torch.tensor([0.0, 2.0]))  # another rank's two
    assert noise.rms_over_job(torch.tensor([[0.3, -0.3], [0.5, 0.1]])) == pytest.approx((0.44 / 6) ** 0.5)
    assert noise.floor(0.3, 9) == pytest.approx(0.2)  # two standard errors: 2 * 0.3 / 3

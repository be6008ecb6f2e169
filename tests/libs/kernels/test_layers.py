"""Norms, gated activation and products added in place, against torch's own autograd; by the chosen backend and by torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nemotron_dpo.kernels import accumulation
from nemotron_dpo.kernels.activation import swiglu, through_swiglu
from nemotron_dpo.kernels.norm import rms_norm
from nemotron_dpo.kernels.torch_ops.activation import LastSilu


@pytest.fixture(autouse=True, params=["chosen", "torch"])
def _chosen_or_torch(request: pytest.FixtureRequest) -> None:
    if request.param == "torch":
        request.getfixturevalue("torch_alone")


# bfloat16's inputs are exact in float32, so a float32 oracle tells how far one rounding of the result may be off
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}


def close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    return ours.dtype is dtype and bool((ours.float() - theirs).norm() <= TOLERANCE[dtype] * theirs.norm())


def leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm(zero_centered: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, grad = leaf(7, 1, 24, dtype=dtype), leaf(24, dtype=dtype), torch.randn(7, 1, 24).to(dtype)
    x_f, weight_f = wide(x, weight)
    expected = F.rms_norm(x_f, (24,), weight_f + 1 if zero_centered else weight_f, 1e-5)
    got = rms_norm(x, weight, 1e-5, zero_centered)
    assert close(got, expected, dtype)
    wanted = torch.autograd.grad(expected, (x_f, weight_f), grad.float())
    for ours, theirs in zip(torch.autograd.grad(got, (x, weight), grad), wanted, strict=True):
        assert close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = leaf(5, 1, 12, dtype=dtype), torch.randn(5, 1, 6).to(dtype)
    (x_f,) = wide(x)
    gate, up = x_f.chunk(2, dim=-1)
    expected, got = F.silu(gate) * up, swiglu(x)
    assert close(got, expected, dtype)
    (ours,), (theirs,) = torch.autograd.grad(got, (x,), grad), torch.autograd.grad(expected, (x_f,), grad.float())
    assert close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_the_activation_keeps_nothing_of_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, slope = leaf(5, 1, 12, dtype=dtype), leaf(4, 6, dtype=dtype), torch.randn(5, 1, 4).to(dtype)
    plain = F.linear(swiglu(x), weight)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        got = through_swiglu(x, lambda activated: F.linear(activated, weight))
    assert torch.equal(got, plain)
    assert [one.shape for one in kept] == [x.shape]
    for ours, theirs in zip(
        torch.autograd.grad(got, (x, weight), slope), torch.autograd.grad(plain, (x, weight), slope), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_silu_made_again_is_not_taken_for_anothers() -> None:
    silu, gates = LastSilu(), torch.randn(2, 5, 6)
    for owner, gate in enumerate(gates):
        assert torch.equal(silu.of(gate, owner), F.silu(gate))
    for owner, gate in enumerate(gates):
        assert torch.equal(silu.taken(gate, owner), F.silu(gate))
        silu.taken(gate, owner).zero_()  # nothing is computed for the one it is there for already
        assert not silu.taken(gate, owner).any()


@pytest.mark.parametrize(("total", "factors"), [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2])
def test_product_is_added(total: torch.dtype, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulation, "_BLOCK_ROWS", 3)
    torch.manual_seed(0)
    before, grad, x = torch.randn(8, 4).to(total), torch.randn(5, 8).to(factors), torch.randn(5, 4).to(factors)
    after = before.clone()
    accumulation.add_product(after, grad, x)
    expected = before.float() + grad.float().t() @ x.float()
    assert after.dtype is total
    assert (after.float() - expected).norm() <= TOLERANCE[factors] * expected.norm()

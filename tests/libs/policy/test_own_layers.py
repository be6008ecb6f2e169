"""Norms, gated activation, token embedding and the in-place gradients of ours, against torch's own autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nemotron_dpo.policy.mlp import Silu, swiglu
from nemotron_dpo.policy.norm import Norm
from nemotron_dpo.policy.weight_gradients import accumulate_in_place, add_product, skip_collectives_of_one


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _kernels_or_torch(request: pytest.FixtureRequest) -> None:
    if request.param == "torch":
        request.getfixturevalue("no_kernels")


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
    config = SimpleNamespace(
        layernorm_zero_centered_gamma=zero_centered, normalization="RMSNorm", params_dtype=dtype, sequence_parallel=False
    )
    norm, x, grad = Norm(config, 24, eps=1e-5), leaf(7, 1, 24, dtype=dtype), torch.randn(7, 1, 24).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x_f, weight_f = wide(x, norm.weight)
    expected = F.rms_norm(x_f, (24,), weight_f + 1 if zero_centered else weight_f, 1e-5)
    got = norm(x)
    assert close(got, expected, dtype)
    wanted = torch.autograd.grad(expected, (x_f, weight_f), grad.float())
    for ours, theirs in zip(torch.autograd.grad(got, (x, norm.weight), grad), wanted, strict=True):
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


def test_silu_made_again_is_not_taken_for_anothers() -> None:
    silu, gates = Silu(), torch.randn(2, 5, 6)
    for owner, gate in enumerate(gates):
        assert torch.equal(silu.of(gate, owner), F.silu(gate))
    for owner, gate in enumerate(gates):
        assert torch.equal(silu.taken(gate, owner), F.silu(gate))
        silu.taken(gate, owner).zero_()  # nothing is computed for the one it is there for already
        assert not silu.taken(gate, owner).any()


@pytest.mark.parametrize(("total", "factors"), [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2])
def test_product_is_added(total: torch.dtype, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemotron_dpo.policy.weight_gradients._BLOCK_ROWS", 3)
    torch.manual_seed(0)
    before, grad, x = torch.randn(8, 4).to(total), torch.randn(5, 8).to(factors), torch.randn(5, 4).to(factors)
    after = before.clone()
    add_product(after, grad, x)
    expected = before.float() + grad.float().t() @ x.float()
    assert after.dtype is total
    assert (after.float() - expected).norm() <= TOLERANCE[factors] * expected.norm()


@pytest.mark.usefixtures("megatron")
def test_gradients_are_added_where_they_are_summed() -> None:
    """A linear layer over the token embedding: weights with a main_grad have their gradients added there."""
    from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
    from megatron.core.transformer import TransformerConfig

    from nemotron_dpo.policy.layers import specialize

    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, use_cpu_initialization=True, gradient_accumulation_fusion=False
    )
    torch.manual_seed(0)
    embedding = VocabParallelEmbedding(11, 8, init_method=torch.nn.init.normal_, config=config)
    linear = ColumnParallelLinear(8, 6, config=config, init_method=torch.nn.init.normal_, bias=False)
    model = torch.nn.ModuleList([embedding, linear])
    specialize(model)
    ids, grad = torch.tensor([[3, 5, 3, 10]]), torch.randn(1, 4, 6)
    weights: list[Any] = [embedding.weight, linear.weight]
    embedded, weight = (w.detach().clone().requires_grad_() for w in weights)
    wanted = torch.autograd.grad(F.embedding(ids, embedded) @ weight.t(), (embedded, weight), grad)
    linear(embedding(ids))[0].backward(grad)
    for ours, theirs in zip(weights, wanted, strict=True):
        assert torch.allclose(ours.grad, theirs, atol=1e-6)
        ours.grad, ours.main_grad = None, torch.ones_like(theirs)
    accumulate_in_place(model)
    linear(embedding(ids))[0].backward(grad)
    for ours, theirs in zip(weights, wanted, strict=True):
        assert ours.grad is None
        assert torch.allclose(ours.main_grad, theirs + 1, atol=1e-6)
    for outside in (-1, 11, 100_000):  # no row is it, and 0 would be trained on in silence
        with pytest.raises(IndexError):
            embedding(torch.tensor([[3, outside]]))


@pytest.mark.usefixtures("megatron")
def test_collectives_of_one_process_leave_its_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.distributed import param_and_grad_buffer

    buffers: Any = param_and_grad_buffer

    calls: list[object] = []
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        monkeypatch.setattr(buffers, name, lambda into, given, *, group, **_: calls.append(into.copy_(given)))
    skip_collectives_of_one()
    same, other = torch.ones(4), torch.zeros(4)
    buffers.dist_all_gather_func(same, same.view(4), group=None)
    buffers.dist_reduce_scatter_func(same, same.view(4), group=None)
    assert not calls
    buffers.dist_all_gather_func(other, same, group=None)  # memory of its own is filled, alone or not
    assert len(calls) == 1
    assert other.tolist() == [1.0] * 4

"""The in-place gradients of linear layers and of the token embedding, against torch's own autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nemotron_dpo.policy.weight_gradients import accumulate_in_place, skip_collectives_of_one


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

"""Activation recompute changes what is kept between forward and backward, and no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from support import small

pytestmark = pytest.mark.usefixtures("megatron")

# settings -> the share of the activations that may be kept at most, of those kept without
SETTINGS = {
    "whole layers": ({}, 0.3),
    "two layers at once": ({"num_layers": 2}, 0.3),
    "the first layer": ({"method": "block"}, 0.65),
    "attention": ({"granularity": "selective"}, 1.0),  # it keeps no scores as it is: there is nothing more to save
    "attention and feed-forward": ({"granularity": "selective", "modules": ("core_attn", "mlp")}, 0.75),
}


def build(folder: Path, settings: dict | None, *, lora: bool):
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt
    from nemotron_dpo.policy.recompute import Recompute
    from nemotron_dpo.sources import resolve

    recompute = None if settings is None else Recompute(**settings)
    model = open_policy(resolve(folder), "float32", recompute=recompute)
    if lora:
        adapt(model, Adapted(Lora(dim=4, alpha=8), Base("base", "digest")))
    return model


def train(model) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Losses and weights of three steps on one row, and the bytes that the first forward keeps beside the weights."""
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.training.batches import PairBatch

    pairs, kept, curve = small.random_pairs(4, seed=2, longest=30), {}, []
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    batch = PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=(0, 1, 2, 3))
    policy = TrainablePolicy(model, Optimization(lr=1e-2))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not curve:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss(_: PairBatch, logps_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not curve:
            kept["all"] = sum(kept.values())  # before backward, which keeps what it recomputes for a moment
        curve.append(logps_R.mean().item())
        return -logps_R.sum(), torch.zeros(1)

    for _ in range(3):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.accumulate([batch], loss)
        policy.step(1e-2)
    return curve, {name: p.detach().clone() for name, p in model.named_parameters()}, kept["all"]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_less_is_kept_and_the_numbers_stay(llama: Path, lora: bool) -> None:
    curve, weights, kept = train(build(llama, None, lora=lora))
    assert curve[0] != curve[2]
    for name, (settings, share) in SETTINGS.items():
        other_curve, other_weights, other_kept = train(build(llama, settings, lora=lora))
        assert other_curve == curve, name
        assert all(torch.equal(weights[key], other_weights[key]) for key in weights), name
        assert other_kept <= share * kept, (name, other_kept / kept)


def test_layernorm_without_transformer_engine_is_refused(llama: Path) -> None:
    with pytest.raises(UserError, match="recomputes layernorm only with Transformer Engine"):
        build(llama, {"granularity": "selective", "modules": ("core_attn", "layernorm")}, lora=False)


def test_units_of_layers_that_do_not_make_up_a_stage_are_refused(llama: Path) -> None:
    """megatron-core would go on behind the last layer; by blocks the rest is computed again layer by layer."""
    with pytest.raises(UserError, match=r"units of 3 layers .* do not make up the 2 layers"):
        build(llama, {"num_layers": 3}, lora=False)
    build(llama, {"method": "block", "num_layers": 3}, lora=False)

"""The routers of a small Mixtral in training: frozen ones, against the same step with trained ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nemotron_dpo.policy.rows import pack_row
from support import families, small

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write_model(tmp_path_factory.mktemp("models") / "mixtral", "mixtral")


def opened(folder: Path, *, lora: bool = False, precision: str = "float32", recompute=None):
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(folder), precision, recompute=recompute)
    if lora:
        adapt(model, Adapted(Lora(dim=4, alpha=8, target_modules=("linear_qkv",)), Base("base", "digest")))
    return model


def batches_of(*pairs: int, per_row: int = 2):
    """Micro batches of `per_row` of the small random pairs each."""
    from nemotron_dpo.training.batches import PairBatch

    tokens = small.random_pairs(6, seed=9)
    made = []
    for start in range(0, len(pairs), per_row):
        part = pairs[start : start + per_row]
        row = pack_row(*([side[pair] for pair in part] for side in (tokens.prompts, tokens.chosen, tokens.rejected)))
        made.append(PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=part))
    return made


def is_router(name: str) -> bool:
    return name.endswith("mlp.router.weight")


def test_a_frozen_router_is_not_trained_and_everything_else_is_as_if_it_were(mixtral: Path) -> None:
    """Its gradient is missing from the norm; the other gradients, which pass through it, are what they were."""
    from nemotron_dpo.policy.routers import freeze_routers
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy

    for precision, distributed in (("float32", True), ("float32", False), ("bfloat16", True)):
        norms, gradients, weights, before = [], [], [], {}
        for frozen in (False, True):
            model = opened(mixtral, precision=precision)
            if frozen:
                freeze_routers(model)
            before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
            settings = Optimization(lr=1e-2, weight_decay=0.5, max_grad_norm=None, use_distributed_optimizer=distributed)
            policy = TrainablePolicy(model, settings)
            policy.accumulate(batches_of(0, 1, 2), lambda _, logps_R: (logps_R.sum(), None))
            gradients.append({n: w.main_grad.clone() for n, w in model.named_parameters() if w.requires_grad})
            norms.append(policy.step(1e-2))
            weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        (trained, frozen), routers = gradients, {name for name in before if is_router(name)}
        assert len(routers) == 2
        assert trained.keys() - frozen.keys() == routers
        assert all(torch.equal(trained[name], frozen[name]) for name in frozen)
        missing = sum(trained[name].norm().item() ** 2 for name in routers)
        assert missing > 0
        assert norms[1] == pytest.approx(math.sqrt(norms[0] ** 2 - missing), rel=1e-5)
        for name in before:
            assert torch.equal(weights[1][name], before[name] if name in routers else weights[0][name]), name
            assert not torch.equal(weights[0][name], before[name]), name


def test_adapters_leave_routers_frozen_as_they_are(mixtral: Path) -> None:
    from nemotron_dpo.policy.routers import freeze_routers

    alone, both = opened(mixtral, lora=True), opened(mixtral, lora=True)
    freeze_routers(both)
    assert {n for n, w in alone.named_parameters() if w.requires_grad} == {
        n for n, w in both.named_parameters() if w.requires_grad
    }

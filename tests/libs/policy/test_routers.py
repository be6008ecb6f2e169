"""Routers in training: frozen ones against the same step with trained ones, their auxiliary loss against transformers' own.

Legend: E experts, k that a token picks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemotron_dpo.policy.load_balancing import Kind, LoadBalancing
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import Cut, pack_row
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import flat
from support import families, small

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write_model(tmp_path_factory.mktemp("models") / "mixtral", "mixtral")


def opened(folder: Path, *, lora: bool = False, precision: str = "float32", recompute: Recompute | None = None) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(folder), precision, recompute=recompute)
    if lora:
        adapt(model, Adapted(Lora(dim=4, alpha=8, target_modules=("linear_qkv",)), Base("base", "digest")))
    return model


TOKENS = small.random_pairs(5, seed=9)


def batches_of(num_pairs: int, per_row: int = 2, cut: Cut | None = None):
    """Micro batches of `per_row` of the first pairs of TOKENS each."""
    from nemotron_dpo.training.batches import PairBatch

    made = []
    for start in range(0, num_pairs, per_row):
        part = slice(start, min(start + per_row, num_pairs))
        row = pack_row(TOKENS.prompts[part], TOKENS.chosen[part], TOKENS.rejected[part], cut or Cut())
        made.append(PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=tuple(range(part.start, part.stop))))
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
            policy.accumulate(batches_of(3), lambda _, logps_R: (logps_R.sum(), None))
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


COEFF = 0.7


def sequences() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prompt and response of the ten sequences that TOKENS are to transformers."""
    for prompt, *sides in zip(TOKENS.prompts, TOKENS.chosen, TOKENS.rejected, strict=True):
        yield from ((prompt, side) for side in sides)


def transformers_balance(model: Any, kind: Kind, top_k: int) -> tuple[torch.Tensor, float]:
    """(what `kind` adds to the loss without its coefficient, its metric) by transformers, of the padded sequences."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rows = [torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in sequences()]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    given = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    if kind == "transformers_aux_loss":
        return given.aux_loss, given.aux_loss.item()
    num_experts = given.router_logits[0].shape[-1]
    together = {"aux_loss": 2, "seq_aux_loss": 1, "global_aux_loss": len(rows)}[kind]
    total = torch.zeros(())
    for layer in given.router_logits:
        by_row = layer.view(len(rows), -1, num_experts)
        for start in range(0, len(rows), together):
            part = slice(start, start + together)
            loss = load_balancing_loss_func((by_row[part].flatten(0, 1),), num_experts, top_k, mask[part])
            total = total + loss / top_k * together / len(rows)
    return total, total.item() / len(given.router_logits)


def expected(folder: Path, kind: Kind, top_k: int) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of routers and embedding, and the metric, of the mean over pairs of summed log-probs and COEFF times the loss."""
    model = families.load(folder)
    added, metric = transformers_balance(model, kind, top_k)
    logps = sum(small.reference_logps(model, *parts).sum() for parts in sequences())
    (logps / len(TOKENS.prompts) + COEFF * added).backward()
    grads = {f"decoder.{name[6:]}": weight.grad for name, weight in model.named_parameters() if ".gate.weight" in name}
    grads = {name.replace("gate", "router"): grad for name, grad in grads.items()}
    return {**grads, "embedding.word_embeddings.weight": model.get_input_embeddings().weight.grad}, metric


# how the batch is cut into rows, and what is computed again: both must not matter. The padding of a row is no token
CUTS: dict[str, list[tuple[dict[str, Any], Recompute | None]]] = {
    "mixtral": [
        ({"per_row": 5}, None),
        ({"per_row": 5}, Recompute(method="block")),
        ({"per_row": 1, "cut": Cut(tokens_together=16)}, Recompute()),
    ],
    "qwen3_moe": [({"per_row": 2}, None), ({"per_row": 2}, Recompute("selective", modules=("moe",)))],
}


def trained(model: Any, kind: Kind, **cutting: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """The same by ours."""
    from nemotron_dpo.policy.balanced_routers import balance
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy

    balance(model, LoadBalancing(kind, COEFF))
    policy = TrainablePolicy(model, Optimization(lr=1e-2))
    for _ in range(2):  # the second batch must not remember the first
        policy.accumulate(batches_of(5, **cutting), lambda _, logps_R: (logps_R.sum(), None))
    grads = {name: weight.main_grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return grads, policy.router_loss(5)


@pytest.mark.parametrize("kind", ["aux_loss", "seq_aux_loss", "global_aux_loss", "transformers_aux_loss"])
@pytest.mark.parametrize(("family", "top_k"), [("mixtral", 2), ("qwen3_moe", 3)])
@pytest.mark.slow
def test_the_auxiliary_loss_is_that_of_transformers_however_the_batch_is_cut(
    family: str, top_k: int, kind: Kind, tmp_path: Path
) -> None:
    folder = families.write_model(tmp_path / "hf", family, pad_token_id=None)  # of which transformers trains no embedding
    theirs, metric = expected(folder, kind, top_k)
    for cutting, recompute in CUTS[family]:
        ours, loss = trained(opened(folder, recompute=recompute), kind, **cutting)
        assert loss.value == pytest.approx(metric, rel=1e-5), (cutting, recompute)
        assert loss.added == pytest.approx(COEFF * metric * (1 if kind == "transformers_aux_loss" else 2), rel=1e-5)
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), (name, cutting, recompute)


def test_the_auxiliary_loss_trains_adapters_below_the_router(mixtral: Path) -> None:
    """A new adapter's B has the gradient of the weight beside it, times A (Hu et al., 2021); that one is transformers' above."""
    whole, _ = trained(opened(mixtral), "aux_loss")
    model = opened(mixtral, lora=True)
    ours, loss = trained(model, "aux_loss")
    assert loss is not None
    for layer in (0, 1):
        linear = f"decoder.layers.{layer}.self_attention.linear_qkv"
        adapter = model.get_submodule(f"{linear}.adapter")
        expected = adapter.scale * whole[f"{linear}.weight"] @ adapter.linear_in.weight.detach().t()
        gradient = ours[f"{linear}.adapter.linear_out.weight"]
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_there_is_no_auxiliary_loss_without_experts_or_a_coefficient(llama: Path, mixtral: Path) -> None:
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.policy.balanced_routers import balance

    for folder, settings in ((llama, LoadBalancing()), (mixtral, None), (mixtral, LoadBalancing(coeff=0.0))):
        model = opened(folder)
        balance(model, settings)
        assert model.balancer is None
    model = opened(mixtral)
    balance(model, LoadBalancing())
    assert model.balancer.coeff == 0.001  # transformers' default, which config.json has
    model = opened(mixtral)
    model.architecture = replace(flat(model.architecture), experts=Router(4, 2)).architecture
    with pytest.raises(UserError, match="does not say the coefficient"):
        balance(model, LoadBalancing())

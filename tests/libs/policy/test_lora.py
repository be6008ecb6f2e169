"""Adapters against Hugging Face's peft on the same weights, and what is frozen, merged, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import PackedRow, pack_row
from support import peft_twin, small

pytestmark = pytest.mark.usefixtures("megatron")

ALL = ("linear_fc1", "linear_fc2", "linear_proj", "linear_qkv")


def adapted(folder: Path, *, std: float = 0.1, **settings):
    """The Llama in `folder` in float32 with adapters; B random with deviation `std`."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt, adapters
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(folder), "float32")
    adapt(model, Adapted(Lora(**{"dim": 4, "alpha": 6, **settings}), Base("base", "digest")))
    random = torch.Generator().manual_seed(11)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=std, generator=random)
    return model


def some_row(seed: int = 3, count: int = 1) -> tuple[small.Tokens, PackedRow]:
    pairs = small.random_pairs(count, seed=seed)
    return pairs, pack_row(pairs.prompts, pairs.chosen, pairs.rejected)


@pytest.mark.parametrize("targets", [(), ("linear_qkv",), ("linear_proj", "linear_fc1")])
def test_logits_equal_peft(llama: Path, targets: tuple[str, ...]) -> None:
    model, (pairs, row) = adapted(llama, target_modules=targets), some_row()
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    with torch.no_grad():
        theirs = peft_twin.twin(llama, model, 4, 6)(ids[None]).logits[0]
        ours = model.all_logits(row)[: row.segments[0].rejected]
        base = small.load_llama(llama)(ids[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-5
    assert (base - theirs).abs().max() >= 1e-2


def test_gradients_of_a_dpo_step_equal_autograd_through_peft(llama: Path) -> None:
    from nemotron_dpo.objective.inputs import loss_inputs
    from nemotron_dpo.objective.losses.dpo import Dpo

    model, (pairs, row) = adapted(llama), some_row(seed=7, count=3)
    theirs, beta = peft_twin.twin(llama, model, 4, 6), 0.3
    ref_R = torch.linspace(-6, -2, len(row.targets_R))
    Dpo(beta).losses(loss_inputs(model(row), ref_R, row.sums_of_responses)).loss.mean().backward()
    loss, refs = torch.zeros(()), list(ref_R.split(torch.bincount(row.response_R).tolist()))
    for i in range(3):
        good, bad = (small.reference_logps(theirs, pairs.prompts[i], side) for side in (pairs.chosen[i], pairs.rejected[i]))
        margin = (good - refs[2 * i]).sum() - (bad - refs[2 * i + 1]).sum()
        loss = loss - torch.sigmoid(beta * margin).log() / 3
    loss.backward()
    for name, ours, expected in peft_twin.gradients(model, theirs):
        assert (ours - expected).norm() <= 1e-4 * expected.norm(), name
        assert expected.norm() > 0


def test_an_untrained_policy_is_its_base(llama: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    row = some_row(count=4)[1]
    with torch.no_grad():
        plain = open_policy(resolve(llama), "float32")(row)
        assert torch.equal(adapted(llama, std=0.0)(row), plain)


def test_merged_weights_compute_the_same(llama: Path) -> None:
    from nemotron_dpo.policy.lora import adapted_of, merge

    model, (_, row) = adapted(llama), some_row(count=4)
    with torch.no_grad():
        before = model.all_logits(row)
        merge(model)
        assert (model.all_logits(row) - before).abs().max() <= 1e-5
    assert adapted_of(model) is None
    assert not [name for name, _ in model.named_parameters() if "adapter" in name or "to_wrap" in name]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("distributed", [False, True])
def test_only_adapters_get_gradients_and_optimizer_state(llama: Path, distributed: bool) -> None:
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.training.batches import PairBatch

    model, row = adapted(llama), some_row(count=2)[1]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    policy = TrainablePolicy(model, Optimization(lr=1e-2, use_distributed_optimizer=distributed))
    batch = PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=(0, 1))
    policy.accumulate([batch], lambda _, logps_R: (-logps_R.sum(), torch.zeros(1)))
    assert policy.step(1e-2) > 0
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if ".adapter." in name}
    trained = sum(before[name].numel() for name in changed)
    buffers = sum(buffer.grad_data.numel() for buffer in policy._ddp.buffers)  # type: ignore[union-attr] - a policy that trains is wrapped
    moments = sum(s["exp_avg"].numel() for s in policy.optimizer.optimizer.state.values())
    assert trained <= buffers < trained + 1024  # buffers are padded, the frozen weights are 20,000
    assert trained <= moments < trained + 1024


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 8),
        ({"target_modules": ("linear_fc1", "linear_proj")}, 4),
        ({"target_modules": ("*.layers.1.*.linear_qkv",)}, 1),
        ({"exclude_modules": ("linear_qkv",)}, 6),
        ({"exclude_modules": ("*.layers.0.*",)}, 4),
    ],
)
def test_the_layers_that_settings_name(llama: Path, settings: dict, expected: int) -> None:
    from nemotron_dpo.policy.lora import adapted_of, adapters

    model = adapted(llama, **settings)
    assert len(adapters(model)) == expected
    said = adapted_of(model)
    assert said is not None
    again = adapted(llama, target_modules=said.lora.target_modules)  # what a checkpoint says names the same layers
    assert adapters(again).keys() == adapters(model).keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ("q_proj",)},
            "'q_proj' matches no linear layer: there are linear_fc1, linear_fc2, linear_proj, linear_qkv",
        ),
        ({"exclude_modules": ("*.layers.7.*",)}, "'*.layers.7.*' matches no linear layer"),
        ({"exclude_modules": ALL}, "without adapters"),
    ],
)
def test_refused(llama: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        adapted(llama, **settings)
    assert message in str(caught.value)


# of A [32, 64]: xavier's normal is sqrt(2 / (in + out)); kaiming's uniform reaches to 1 / sqrt(in)
@pytest.mark.parametrize(
    ("a_init", "deviation"), [("xavier", (2 / 96) ** 0.5), ("normal", 0.2), ("kaiming", 1 / (3 * 64) ** 0.5)]
)
def test_first_values_are_bridges_distributions_and_follow_the_seed(llama: Path, a_init: str, deviation: float) -> None:
    from nemotron_dpo.policy.lora import adapters

    first = adapters(adapted(llama, dim=32, alpha=32, a_init=a_init))
    weights = torch.cat([layer.adapter.linear_in.weight.flatten() for name, layer in first.items() if "fc2" in name])
    assert weights.std().item() == pytest.approx(deviation, rel=0.05)
    again = adapters(adapted(llama, dim=32, alpha=32, a_init=a_init))
    assert all(torch.equal(first[n].adapter.linear_in.weight, again[n].adapter.linear_in.weight) for n in first)


def test_adapters_of_float32_over_a_bfloat16_policy(llama: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt, adapters
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(llama), "bfloat16")
    adapt(model, Adapted(Lora(dim=4, alpha=4, dtype="float32"), Base("base", "digest")))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logps = model(some_row()[1])
    logps.sum().backward()
    grads = [layer.adapter.linear_out.weight.grad for layer in adapters(model).values()]
    assert all(grad is not None and grad.norm() > 0 for grad in grads)

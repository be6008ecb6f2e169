"""Plans whose layers are not all alike: every seam takes them, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.load_balancing import LoadBalancing
from nemotron_dpo.policy.lora_targets import Lora, adapter_parameters, check_targets
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.rotary import Rotary
from nemotron_dpo.steps.estimate import flops, memory
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes
from support import small

ATTENTION, DENSE, EXPERTS = Attention(4, 2, 8, Rotary(1e4)), Dense(64), Experts(Router(4, 2), Dense(48))
# of hidden size 32: linear_qkv 32 x 64 and linear_proj 32 x 32; 3 x 32 x 64; four times 3 x 32 x 48 and a router of 4 x 32
SIZES = {ATTENTION: 3072, DENSE: 6144, EXPERTS: 4 * 4608 + 128}
MET = {**SIZES, EXPERTS: 2 * 4608 + 128}


def plan(*layers: Layer) -> Architecture:
    return Architecture(
        layers,
        hidden_size=32,
        vocab_size=small.VOCAB,
        max_position_embeddings=128,
        norm_epsilon=1e-5,
        tied_embeddings=True,
        dtype="float32",
    )


PLANS = {
    "dense first": plan(Layer(ATTENTION, DENSE), Layer(ATTENTION, EXPERTS), Layer(ATTENTION, EXPERTS)),
    "one sublayer each": plan(Layer(None, DENSE), Layer(ATTENTION, None), Layer(None, EXPERTS), Layer(ATTENTION, DENSE)),
}


@pytest.mark.parametrize("name", PLANS)
def test_costs_are_the_sums_of_the_layers(name: str) -> None:
    architecture, lengths = PLANS[name], Lengths(10, 20)
    parts = list(architecture.sublayers())
    whole = sum(SIZES[part] + 32 for part in parts) + 32 + 32 * small.VOCAB  # a norm each, the last norm, the embedding
    assert architecture.num_parameters() == whole
    met, scores = sum(MET[part] for part in parts), parts.count(ATTENTION) * 32 * lengths.meetings()
    output = 32 * small.VOCAB * 20
    assert flops.scoring(architecture, lengths) == 2 * met * 30 + 4 * scores + 2 * output
    assert flops.training(architecture, Sizes("float32", 100), lengths) == 6 * met * 30 + 14 * scores + 6 * output


def test_memory_is_that_of_the_stage_whose_layers_take_most() -> None:
    layout = Layout(pipeline=2, first_stage_layers=1)
    two = 2 * (SIZES[ATTENTION] + SIZES[EXPERTS] + 64) + 32 * small.VOCAB
    assert memory.memory(PLANS["dense first"], Sizes("float32", 100, layout)).weights == 4 * two


def test_adapters_are_put_where_a_layer_has_the_linear_layer() -> None:
    lora, architecture = Lora(dim=2, target_modules=("linear_qkv", "*.layers.0.*.linear_fc1")), PLANS["one sublayer each"]
    check_targets(lora, architecture)
    assert adapter_parameters(lora, architecture) == 2 * ((32 + 64) * 2 + (32 + 128))
    assert adapter_parameters(lora, architecture, slice(1, 3)) == 2 * (32 + 64)
    dense, attention, expert = (32 + 128) + (64 + 32), (32 + 64) + (32 + 32), (32 + 96) + (48 + 32)
    assert adapter_parameters(Lora(dim=2), architecture) == 2 * (2 * dense + 2 * attention + 4 * expert)
    assert adapter_parameters(Lora(dim=2), architecture, met=True) == 2 * (2 * dense + 2 * attention + 2 * expert)


def test_layers_that_one_config_cannot_say_are_refused() -> None:
    from nemotron_dpo.policy.transformer_config import transformer_config

    wider = plan(Layer(ATTENTION, EXPERTS), Layer(ATTENTION, Experts(Router(4, 2), Dense(96))))
    with pytest.raises(UserError, match="layers that differ in moe_ffn_hidden_size are not supported"):
        transformer_config(wider, torch.float32)


def test_experts_that_gloo_cannot_gather_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that hold parts of one expert would gather unequal numbers of tokens."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.transformer_config import transformer_config

    monkeypatch.setattr(parallel, "layout", lambda: Layout(tensor=2, sequence=True, expert=2))
    with pytest.raises(UserError, match="cannot divide each expert too"):
        transformer_config(PLANS["dense first"], torch.float32)
    monkeypatch.setattr(parallel, "layout", lambda: Layout(tensor=2, sequence=True, expert=2, expert_tensor=1))
    transformer_config(PLANS["dense first"], torch.float32)


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("name", PLANS)
def test_a_policy_of_the_plan_computes_learns_and_is_saved(name: str, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import megatron, torch_dist
    from nemotron_dpo.policy.model import build_policy

    model, again = (build_policy(PLANS[name], torch.float32, max_length=128) for _ in range(2))
    assert sum(parameter.numel() for parameter in model.parameters()) == PLANS[name].num_parameters()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pairs = small.random_pairs(3, seed=1)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    logps_R = model(row)
    logps_R.sum().backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.norm() > 0, part
    alone = model(pack_row(pairs.prompts[1:2], pairs.chosen[1:2], pairs.rejected[1:2]))
    assert torch.allclose(alone, logps_R[(row.response_R == 2) | (row.response_R == 3)], atol=1e-5)
    content = {"singleton_local_shards": False}
    state = model.sharded_state_dict(metadata=content)
    weights = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
    torch_dist.save({"model": weights}, tmp_path, content)
    megatron.load(again, tmp_path)
    assert torch.equal(again(row), logps_R)


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("name", PLANS)
def test_the_auxiliary_loss_is_of_the_layers_that_have_experts(name: str) -> None:
    """By its formula, from what enters each router; tokens of the prompt count twice."""
    from nemotron_dpo.policy.balanced_routers import balance
    from nemotron_dpo.policy.model import build_policy
    from nemotron_dpo.policy.routers import routers
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.training.batches import PairBatch

    model, seen = build_policy(PLANS[name], torch.float32, max_length=128), []
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for router in routers(model):
        router.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 0] @ module.get_parameter("weight").t()))
    balance(model, LoadBalancing("aux_loss", 0.1))
    pairs = small.random_pairs(1, seed=1)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    policy = TrainablePolicy(model, Optimization(lr=1e-3))
    batch = PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=(0,))
    policy.accumulate([batch], lambda _, logps_R: (logps_R.sum(), None))

    weights = torch.ones(row.num_tokens)
    weights[: len(pairs.prompts[0])] = 2
    losses = []
    for logits in seen:
        probs = torch.softmax(logits.detach(), -1)
        picks = torch.zeros_like(probs).scatter(1, probs.topk(2).indices, 1.0)
        fractions, means = weights @ picks / (2 * weights.sum()), weights @ probs / weights.sum()
        losses.append(4 * (fractions * means).sum().item())
    assert len(losses) == sum(layer.num_experts > 0 for layer in PLANS[name].layers)
    found = policy.router_loss(1)
    assert found is not None
    assert found.value == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.added == pytest.approx(0.1 * sum(losses), rel=1e-5)


def test_stages_of_a_pipeline() -> None:
    cases = [
        (Layout(), 5, [5]),
        (Layout(pipeline=3), 6, [2, 2, 2]),
        (Layout(pipeline=3, first_stage_layers=1), 7, [1, 3, 3]),
        (Layout(pipeline=3, last_stage_layers=3), 7, [2, 2, 3]),
        (Layout(pipeline=2, first_stage_layers=1, last_stage_layers=4), 5, [1, 4]),
    ]
    for layout, num_layers, sizes in cases:
        stages = layout.stages(num_layers)
        assert [stage.stop - stage.start for stage in stages] == sizes
        assert [stage.start for stage in stages] == [sum(sizes[:i]) for i in range(len(sizes))]
    for layout in (Layout(pipeline=2), replace(Layout(pipeline=2), first_stage_layers=5)):
        with pytest.raises(UserError, match="do not divide over"):
            layout.stages(5)


def test_a_norm_over_all_heads_needs_each_key_head_on_one_rank() -> None:
    over_heads = replace(ATTENTION, qk_norm=True, qk_norm_over_heads=True)
    assert [size for _, size, _ in over_heads.undivided(Layout(tensor=2))] == [4]
    with pytest.raises(
        UserError, match=r"a norm over all 2 key/value heads needs .*: set .*tensor_model_parallel_size=2 or less"
    ):
        list(over_heads.undivided(Layout(tensor=4)))


def test_norms_after_a_sublayer_are_counted() -> None:
    """Of 32 channels each: two more a layer than without, or none more where they are in the place of the norms before."""
    both = plan(Layer(replace(ATTENTION, norm_after=True), replace(DENSE, norm_after=True)))
    place = {"norm_before": False, "norm_after": True}
    after = plan(Layer(replace(ATTENTION, **place), replace(DENSE, **place)))
    plain = plan(Layer(ATTENTION, DENSE))
    assert both.num_parameters() - plain.num_parameters() == 64
    assert after.num_parameters() == plain.num_parameters()
    over_heads = plan(Layer(replace(ATTENTION, qk_norm=True, qk_norm_over_heads=True), DENSE))
    assert over_heads.num_parameters() - plain.num_parameters() == (4 + 2) * 8

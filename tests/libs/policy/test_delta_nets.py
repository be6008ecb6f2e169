"""Policies with gated delta nets against plain transformers forwards of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_dpo.policy import flops
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import Cut, PackedRow, pack_row
from nemotron_dpo.sources import resolve
from nemotron_dpo.steps.estimate.sizes import Lengths
from support import delta_nets, small
from support.delta_nets import write_model

pytestmark = pytest.mark.usefixtures("megatron")


def opened(folder: Path, precision: str = "float32", recompute: Recompute | None = None) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), precision, recompute=recompute)


def linear_part(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our parameters by transformers' gradients: how the weights are laid out, less what is added to them."""
    from nemotron_dpo.checkpoint.hf import layer_at, placed

    found = {}
    for name, _, rule, place in placed(model):
        parts, layer = [tensors[key.format(*place)] for key in rule.hf], layer_at(model.architecture, place)
        found[name] = rule.merge(layer, parts) - rule.merge(layer, [torch.zeros_like(part) for part in parts])
    return found


@pytest.mark.parametrize("name", delta_nets.MODELS)
@pytest.mark.slow
def test_packed_shared_prompts_and_their_gradients_equal_two_separate_forwards(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, name, pad_token_id=None)  # whose embedding transformers would give no gradient
    ours, pairs = opened(folder), small.random_pairs(4, seed=7, longest=90)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    logps_R = ours(row)
    dpo(logps_R, row).backward()
    with delta_nets.loaded(folder) as theirs:
        expected = expected_logps(theirs, pairs)
        dpo(expected, row).backward()
    assert (logps_R - expected).abs().max() <= 1e-5 * expected.abs().max()
    gradients = linear_part(ours, delta_nets.as_in_files({name: of.grad for name, of in theirs.named_parameters()}))
    for name, parameter in ours.named_parameters():
        assert near(parameter.grad, gradients[name]), name


@pytest.mark.slow
def test_a_policy_scores_bit_for_bit_as_its_reference_did_and_as_its_neighbours_let_it(tmp_path: Path) -> None:
    """With gradients and without, in either precision: the first loss is ln 2. Other pairs of the row change rounding alone."""
    folder, pairs = write_model(tmp_path, "experts"), small.random_pairs(4, seed=7, longest=90)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    alone = pack_row(pairs.prompts[2:3], pairs.chosen[2:3], pairs.rejected[2:3])
    found = []
    for precision, rounding in (("float32", 1e-4), ("bfloat16", 1.0)):
        model = opened(folder, precision)
        with torch.no_grad():
            reference_R = model(row)
            assert (model(alone) - reference_R[(row.response_R == 4) | (row.response_R == 5)]).abs().max() <= rounding
        assert torch.equal(model(row).detach(), reference_R)
        found.append(reference_R)
    assert (found[0] - found[1]).abs().mean() <= 0.15


def test_parameters_and_flops_are_those_of_the_layers(tmp_path: Path) -> None:
    """Of hidden size 32 and 96 tokens. A gated delta net of 2 key heads of 8 and 4 value heads of 12: in_proj 32 x (16 + 16 +
    48 + 48 + 4 + 4), a convolution of 80 x 4, out_proj 48 x 32, of heads 2 x 4, of a head 12, a norm of 32; a dense part of
    3 x 32 x 48 and a norm. A token's products in a chunk of 64: 64 x 16 keys, 64 x 4 x 8 queries, twice 64 x 48, three times
    48 x 8.
    """
    model = opened(write_model(tmp_path, "recurrence"))
    layer = 32 * 136 + 80 * 4 + 48 * 32 + 8 + 12 + 32 + 3 * 32 * 48 + 32
    assert model.architecture.num_parameters() == 2 * 96 * 32 + layer + 32
    assert model.architecture.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    mixing = 2 * (64 * 16 + 64 * 32 + 2 * 64 * 48 + 3 * 48 * 8)
    assert flops.mixing(model.architecture, Lengths(5, 8)) == (13 * mixing, 3 * 13 * mixing)


@pytest.mark.slow
def test_a_row_of_padding_alone_has_no_gradient(tmp_path: Path) -> None:
    model = opened(write_model(tmp_path, "mixed"))
    logps_R = model(pack_row([], [], [], Cut(tokens_together=4)))
    assert logps_R.shape == (0,)
    logps_R.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.slow
def test_recomputation_changes_no_bit_of_a_gradient(tmp_path: Path) -> None:
    folder, pairs = write_model(tmp_path, "mixed"), small.random_pairs(3, seed=7, longest=50)
    row, due = pack_row(pairs.prompts, pairs.chosen, pairs.rejected), {}
    units = (Recompute(), Recompute(num_layers=2), Recompute(method="block", num_layers=2))
    for recompute in (None, *units, Recompute("selective", modules=("mlp", "moe"))):
        model = opened(folder, recompute=recompute)
        dpo(model(row), row).backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        due = due or found
        assert all(torch.equal(found[name], due[name]) for name in due), recompute


def test_adapters_and_their_gradients_equal_those_of_merged_weights(tmp_path: Path) -> None:
    """The gradients of A and B follow from W's, which are those of transformers (above). Four mixers of two linear layers
    each, three dense parts of two, a mixture of eight experts and a shared one of two: 32.
    """
    from nemotron_dpo.policy.lora import Adapted, Base, adapt, adapters, merge
    from nemotron_dpo.policy.lora_targets import Lora

    folder, pairs = write_model(tmp_path, "mixed"), small.random_pairs(3, seed=7, longest=50)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    for targets, count in (((), 32), (("in_proj", "out_proj"), 4), (("linear_qkv",), 2)):
        model = opened(folder)
        adapt(model, Adapted(Lora(dim=4, alpha=2, target_modules=targets), Base("", "")))
        torch.manual_seed(0)
        for layer in adapters(model).values():
            torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
        logps_R, factors = model(row), {}
        dpo(logps_R, row).backward()
        for name, layer in adapters(model).items():
            a, b = layer.adapter.linear_in.weight, layer.adapter.linear_out.weight
            factors[f"{name}.weight"] = a.detach(), b.detach(), a.grad, b.grad
        merge(model)
        expected = model(row)
        assert (logps_R - expected).abs().max() <= 3e-5
        dpo(expected, row).backward()
        assert len(factors) == count
        for name, (a, b, a_grad, b_grad) in factors.items():
            due = model.get_parameter(name).grad
            assert near(a_grad, 0.5 * b.t() @ due), name
            assert near(b_grad, 0.5 * due @ a.t()), name


def expected_logps(model: Any, pairs: small.Tokens) -> torch.Tensor:
    """Log-probs [R] by two separate forwards a pair."""
    parts = zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    return torch.cat([small.reference_logps(model, prompt, side) for prompt, *sides in parts for side in sides])


def dpo(logps_R: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """The loss of pairs whose reference log-probs are 0."""
    return -torch.nn.functional.logsigmoid(0.1 * row.sums_of_responses(logps_R) @ torch.tensor([1.0, -1.0])).sum()


def near(gradient: torch.Tensor | None, due: torch.Tensor) -> bool:
    """Whether a gradient is the one that is due, which is not 0."""
    return gradient is not None and bool(due.norm() > 0) and bool((gradient - due).norm() <= 3e-5 * due.norm())

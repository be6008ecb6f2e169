"""Hybrids of recurrences, attention and feed-forward parts, against plain transformers forwards of the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import Cut, PackedRow, pack_row
from support import hybrids, small

pytestmark = pytest.mark.usefixtures("megatron")
PATTERNS = ("M-M*-M-", "MEM*EM-E", "M", "M*E")


def build(pattern: str, dtype: torch.dtype = torch.float32, recompute: Recompute | None = None) -> Any:
    from nemotron_dpo.policy.model import build_policy

    return build_policy(hybrids.architecture(pattern), dtype, max_length=256, recompute=recompute)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_packed_shared_prompts_and_their_gradients_equal_two_separate_forwards(pattern: str) -> None:
    ours, theirs = build(pattern), hybrids.theirs(pattern)
    hybrids.fill(ours, theirs.state_dict())
    pairs = small.random_pairs(4, seed=7, longest=90)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    logps_R, expected = ours(row), expected_logps(theirs, pairs)
    assert (logps_R - expected).abs().max() <= 2e-5
    for logps in (logps_R, expected):
        dpo(logps, row).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in hybrids.named(ours).items():
        if isinstance(parameter, torch.nn.Parameter):
            assert near(parameter.grad, hybrids.whole(name, gradients)), name


def test_dt_has_no_floor() -> None:
    """transformers clamps dt from below, Megatron does not (huggingface/transformers issue 48989): that changes log-probs."""
    clamped, free = (hybrids.theirs("M", clamped=clamped) for clamped in (True, False))
    pairs = small.random_pairs(2, seed=7, longest=90)
    with torch.no_grad():
        assert (expected_logps(clamped, pairs) - expected_logps(free, pairs)).abs().max() > 1e-3


def test_a_policy_scores_bit_for_bit_as_its_reference_did_and_as_its_neighbours_let_it() -> None:
    """With gradients and without, in either precision: the first loss is ln 2. Other pairs of the row change rounding alone."""
    state = hybrids.theirs("MEM*E-").state_dict()
    pairs = small.random_pairs(4, seed=7, longest=90)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    alone = pack_row(pairs.prompts[2:3], pairs.chosen[2:3], pairs.rejected[2:3])
    found = []
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 0.3)):
        model = build("MEM*E-", dtype)
        hybrids.fill(model, state)
        with torch.no_grad():
            reference_R = model(row)
            assert (model(alone) - reference_R[(row.response_R == 4) | (row.response_R == 5)]).abs().max() <= rounding
        assert torch.equal(model(row).detach(), reference_R)
        found.append(reference_R)
    assert (found[0] - found[1]).abs().mean() <= 0.1


def test_a_row_of_padding_alone_has_no_gradient() -> None:
    """Ranks that divide experts run equally many rows, some without pairs."""
    model = build("M*E")
    hybrids.fill(model, hybrids.theirs("M*E").state_dict())
    logps_R = model(pack_row([], [], [], Cut(tokens_together=4)))
    assert logps_R.shape == (0,)
    logps_R.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_recomputation_changes_no_bit_of_a_gradient() -> None:
    """Nor of the counts that move biases: what is computed again is not counted again."""
    from nemotron_dpo.policy.balanced_routers import move_biases

    state, pairs = hybrids.theirs("MEM*E-").state_dict(), small.random_pairs(3, seed=7, longest=50)
    row, due = pack_row(pairs.prompts, pairs.chosen, pairs.rejected), {}
    units = (Recompute(), Recompute(num_layers=3), Recompute(method="block", num_layers=2))
    for recompute in (None, *units, Recompute("selective", modules=("mlp", "moe"))):
        model = build("MEM*E-", recompute=recompute)
        hybrids.fill(model, state)
        move_biases(model, 1e-3)
        dpo(model(row), row).backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        found |= {name: counts for name, counts in model.named_buffers() if name.endswith("tokens_per_expert")}
        due = due or found
        assert len(due) > 30
        assert all(torch.equal(found[name], due[name]) for name in due), recompute


@pytest.mark.parametrize("targets", [(), ("in_proj", "out_proj"), ("linear_fc1", "linear_qkv"), ("*.local_experts.2.*",)])
def test_adapters_and_their_gradients_equal_those_of_merged_weights(targets: tuple[str, ...]) -> None:
    """transformers with W + B A / 2 in the place of W. The gradients of A and B follow from W's."""
    from nemotron_dpo.policy.lora import Adapted, Base, adapt, adapters, merge
    from nemotron_dpo.policy.lora_targets import Lora

    ours, theirs = build("MEM*E-"), hybrids.theirs("MEM*E-")
    state = theirs.state_dict()
    hybrids.fill(ours, state)
    adapt(ours, Adapted(Lora(dim=4, alpha=2, target_modules=targets), Base("", "")))
    torch.manual_seed(0)
    for layer in adapters(ours).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
    pairs = small.random_pairs(3, seed=7, longest=50)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    logps_R, factors = ours(row), {}
    dpo(logps_R, row).backward()
    for name, layer in adapters(ours).items():
        a, b = layer.adapter.linear_in.weight, layer.adapter.linear_out.weight
        factors[f"{name}.weight"] = a.detach(), b.detach(), a.grad, b.grad
    assert all(tensor.grad is None for name, tensor in ours.named_parameters() if ".adapter." not in name)
    merge(ours)
    for name, tensor in hybrids.named(ours).items():
        hybrids.put_back(name, tensor.detach(), state)
    theirs.load_state_dict(state)
    expected = expected_logps(theirs, pairs)
    assert (logps_R - expected).abs().max() <= 2e-5
    dpo(expected, row).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert (
        len(factors)
        == {(): 28, ("in_proj", "out_proj"): 4, ("linear_fc1", "linear_qkv"): 12, ("*.local_experts.2.*",): 4}[targets]
    )
    for name, (a, b, a_grad, b_grad) in factors.items():
        due = hybrids.whole(name, gradients)
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

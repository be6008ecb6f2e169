"""Families whose layers are more than Llama's, against transformers: packed shared prompts, gradients, adapters, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import PackedRow, pack_row
from nemotron_dpo.sources import resolve
from support import families, small

pytestmark = pytest.mark.usefixtures("megatron")
FAMILIES = ("olmo2", "olmo3", "granite", "gemma2", "gemma3_text")
PAIRS = small.random_pairs(3, seed=7, longest=40)


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small random model of a family."""
    return families.write_model(tmp_path / "hf", request.param, tied=True, pad_token_id=0)


def opened(folder: Path, **settings: Any) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), "float32", **settings)


def test_log_probs_and_gradients_equal_two_separate_forwards_a_pair(folder: Path) -> None:
    from nemotron_dpo.checkpoint.hf import layer_at, placed

    ours, theirs, row = opened(folder), families.load(folder), packed()
    logps_R, expected = ours(row), expected_logps(theirs)
    assert near(logps_R, expected)
    for logps in (logps_R, expected):
        dpo(logps, row).backward()
    due = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter, rule, place in placed(ours):
        parts = [due[key.format(*place)] for key in rule.hf]
        assert near(parameter.grad, rule.merge(layer_at(ours.architecture, place), parts)), name


def test_scoring_equals_training_bit_for_bit_and_keeps_nothing_for_gradients(folder: Path) -> None:
    """With recomputation too, which changes no bit of a gradient."""
    model, row = opened(folder), packed()
    with torch.no_grad():
        scored = model(row)
    assert scored.grad_fn is None
    gradients = []
    for recompute in (None, Recompute(), Recompute("selective", modules=("mlp",))):
        model = opened(folder, recompute=recompute)
        logps = model(row)
        assert torch.equal(logps, scored)
        dpo(logps, row).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for again in gradients[1:]:
        assert all(torch.equal(again[name], grad) for name, grad in gradients[0].items())


def test_nothing_is_recorded_while_a_reference_is_scored(folder: Path) -> None:
    """megatron-core adds to the stream with gradients on, so that a norm there would keep what enters it, layer by layer."""
    model, row, kept = opened(folder), packed(), []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        model(row)
    assert not kept


def test_adapters_are_added_before_the_norm_as_in_peft(folder: Path, tmp_path: Path) -> None:
    """Against transformers with W + B A / 2 in the place of W."""
    from nemotron_dpo.checkpoint import hf
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt, adapters, merge

    model, row = opened(folder), packed()
    adapt(model, Adapted(Lora(dim=4, alpha=2), Base("", "")))
    torch.manual_seed(0)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
    assert len(adapters(model)) == 4 * len(model.architecture.layers)
    with torch.no_grad():
        adapted = model(row)
        merge(model)
        (tmp_path / "merged").mkdir()
        hf.save(model, tmp_path / "merged", torch.float32, None)
        assert near(adapted, expected_logps(families.load(tmp_path / "merged")))
        assert (adapted - expected_logps(families.load(folder))).abs().max() > 1e-2


def packed() -> PackedRow:
    return pack_row(PAIRS.prompts, PAIRS.chosen, PAIRS.rejected)


def expected_logps(model: Any) -> torch.Tensor:
    """Log-probs [R] by two separate forwards a pair."""
    parts = zip(PAIRS.prompts, PAIRS.chosen, PAIRS.rejected, strict=True)
    return torch.cat([small.reference_logps(model, prompt, side) for prompt, *sides in parts for side in sides])


def dpo(logps_R: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """The loss of pairs whose reference log-probs are 0."""
    return -torch.nn.functional.logsigmoid(0.1 * row.sums_of_responses(logps_R) @ torch.tensor([1.0, -1.0])).sum()


def near(found: torch.Tensor | None, due: torch.Tensor) -> bool:
    """Whether a tensor is the one that is due, which is not 0."""
    return found is not None and bool(due.norm() > 0) and bool((found - due).norm() <= 1e-5 * due.norm())

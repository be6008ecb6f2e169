"""Grouped experts against the sequential ones that they replace on a GPU, values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemotron_dpo.policy.rows import pack_row
from support import families, small

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("sizes", [[3, 0, 5, 8], [0, 0, 0, 1], [4, 4, 4, 0]])
def test_a_grouped_product_equals_one_product_an_expert(sizes: list[int], dtype: torch.dtype, bound: float) -> None:
    from nemotron_dpo.policy.grouped_experts import grouped_linear

    torch.manual_seed(0)
    x = torch.randn(sum(sizes), 16, dtype=dtype, requires_grad=True)
    weights = [torch.randn(32, 16, dtype=dtype, requires_grad=True) for _ in sizes]
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    slope = torch.randn(sum(sizes), 32, dtype=dtype)
    alone = torch.cat([part @ weight.t() for part, weight in zip(x.split(sizes), weights, strict=True)])
    together = grouped_linear(x, ends, weights)
    expected = torch.autograd.grad(alone, [x, *weights], slope)
    got = torch.autograd.grad(together, [x, *weights], slope)
    for ours, theirs in zip((together, *got), (alone, *expected), strict=True):
        assert (ours - theirs).abs().max() <= bound * max(1, theirs.abs().max())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_is_the_same_with_grouped_experts(family: str, tmp_path: Path) -> None:
    from megatron.core.transformer.moe.experts import SequentialMLP

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.grouped_experts import GroupedExperts
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(families.write_model(tmp_path / "hf", family)), "float32")
    pairs = small.random_pairs(3, seed=2)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        logps = model(row)
        return logps.detach(), list(torch.autograd.grad(logps.sum(), list(model.parameters())))

    one_by_one = run()
    mixtures = [module for module in model.modules() if isinstance(module, SequentialMLP)]
    assert mixtures
    for module in mixtures:
        module.__class__ = GroupedExperts
    together = run()
    assert (together[0] - one_by_one[0]).abs().max() <= 1e-5
    for ours, theirs in zip(together[1], one_by_one[1], strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()

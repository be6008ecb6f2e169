"""Entropy, sum of squares and most probable token of each response token, against float64 and against transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemotron_dpo.kernels import chosen, logits
from nemotron_dpo.kernels.torch_ops.table import torch_kernels
from nemotron_dpo.policy.logprobs import response_logps, slope_of, trained_logps
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.policy.token_values import NAMES, TokenValues
from support import small


@pytest.fixture(params=["chosen", "torch"], autouse=True)
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels of this machine, and torch's; blocks of few entries, of which the last has fewer."""
    monkeypatch.setattr(logits, "BLOCK_ENTRIES", 40)
    before = chosen.use(torch_kernels() if request.param == "torch" else None)
    yield
    chosen.use(before)


def wanted(logits_RV: Tensor, targets_R: Tensor) -> dict[str, Tensor]:
    """By the definitions, in float64."""
    log_p = logits_RV.double().log_softmax(-1)
    p = log_p.exp()
    return {
        "entropy": -torch.special.xlogy(p, p).sum(-1),
        "log_sum_squares": p.square().sum(-1).log(),
        "is_most_probable": (logits_RV.argmax(-1) == targets_R).double(),
    }


def taken(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of one chunk, and the same once more while gradients are made at once, by parts."""
    values, again = TokenValues(NAMES), TokenValues(NAMES)
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    response_logps(*leaves, targets, None, values)
    parts = [slice(start, min(start + 7, len(targets))) for start in range(0, len(targets), 7)]
    trained_logps(*leaves, targets, slope_of(lambda logps: logps.sum()), parts, None, again)
    for name, value in values.by_name.items():
        assert torch.allclose(value, again.by_name[name], rtol=0, atol=1e-5, equal_nan=True)
        assert not value.requires_grad
    return values.by_name


def agree(got: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert torch.equal(got["is_most_probable"].double(), expected["is_most_probable"])
    for name in ("entropy", "log_sum_squares"):
        assert torch.allclose(got[name].double(), expected[name], rtol=0, atol=bound), name


def in_range(got: dict[str, Tensor], entries: int) -> None:
    """Entropy within [0, ln V], the sum of squares within [1 / V, 1], to rounding."""
    most = math.log(entries)
    assert ((got["entropy"] >= 0) & (got["entropy"] <= most * (1 + 1e-6))).all()
    assert ((got["log_sum_squares"] <= 1e-6) & (got["log_sum_squares"] >= -most * (1 + 1e-6))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entries", [1, 39, 40, 41, 200])
def test_values_are_those_of_float64(dtype: torch.dtype, entries: int) -> None:
    torch.manual_seed(entries)
    hidden, weight = (
        (torch.randn(60, 32) * 2 ** torch.linspace(-8, 2, 60)[:, None]).to(dtype),
        torch.randn(entries, 32).to(dtype),
    )
    x = hidden.double() @ weight.double().t()
    targets = torch.where(torch.arange(60) % 3 == 0, x.argmax(1), torch.randint(entries, (60,)))
    got = taken(hidden, weight, targets)
    agree(got, wanted(x, targets), 5e-5)
    in_range(got, entries)


EXTREMES = {  # logits by entry, of 100: entropy and log of the sum of squares by hand
    "all equal": ({}, math.log(100), -math.log(100)),
    "all equal and large": (dict.fromkeys(range(100), 1e4), math.log(100), -math.log(100)),
    "all equal and very negative": (dict.fromkeys(range(100), -1e4), math.log(100), -math.log(100)),
    "one of 10000": ({57: 1e4}, 0.0, 0.0),
    "two of 10000, of two blocks": ({3: 1e4, 99: 1e4}, math.log(2), -math.log(2)),
    "two far above others that are far above zero": (
        {**dict.fromkeys(range(100), 9984.0), 3: 1e4, 99: 1e4}, math.log(2) + 49 * math.exp(-16) * 17, -math.log(2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    """A hidden state of ones over weights that are the logits: products are exact, and 10000 and 9984 are no rounded numbers."""
    entries, entropy, log_sum_squares = EXTREMES[name]
    x = torch.zeros(100)
    for place, logit in entries.items():
        x[place] = logit
    first = int(x.argmax())
    targets = torch.tensor([first, (first + 1) % 100, 99])
    got = taken(torch.tensor([[1.0, 0.0]]).repeat(3, 1).to(dtype), torch.stack((x, torch.zeros(100)), 1).to(dtype), targets)
    rounded = x.to(dtype)  # bfloat16 has 9984 and no 10000
    agree(got, wanted(rounded.expand(3, 100), targets), 2e-6)
    in_range(got, 100)
    if dtype is torch.float32:
        assert got["entropy"].tolist() == pytest.approx([entropy] * 3, abs=3e-6)
        assert got["log_sum_squares"].tolist() == pytest.approx([log_sum_squares] * 3, abs=3e-5)


def test_of_equally_probable_tokens_the_first_is_the_most_probable() -> None:
    """Ties within a block and across blocks, before the target and behind it."""
    cases = [
        ((5, 9), 5, 1),
        ((5, 9), 9, 0),
        ((5, 90), 5, 1),
        ((5, 90), 90, 0),
        ((0, 99), 0, 1),
        ((39, 40), 40, 0),
        ((39, 40), 39, 1),
    ]
    for tied, target, expected in cases:
        weight = torch.zeros(100, 2)
        weight[list(tied), 0] = 3.0
        values = TokenValues(frozenset({"is_most_probable"}))
        response_logps(torch.tensor([[1.0, 0.0]]), weight, torch.tensor([target]), None, values)
        assert values.by_name["is_most_probable"].tolist() == [expected], (tied, target)
        assert weight[:, 0].argmax() == tied[0]


def test_values_of_what_is_not_finite_are_not_finite() -> None:
    hidden, weight = torch.randn(4, 8), torch.randn(100, 8)
    hidden[2, 3] = math.nan
    got = taken(hidden, weight, torch.tensor([1, 2, 3, 4]))
    for name in ("entropy", "log_sum_squares"):
        assert got[name].isnan().tolist() == [False, False, True, False]
    assert got["is_most_probable"][2] == 0


def test_only_what_is_asked_for_is_taken_and_what_nobody_knows_is_refused() -> None:
    values = TokenValues(frozenset({"entropy"}))
    response_logps(torch.randn(0, 8), torch.randn(100, 8), torch.zeros(0, dtype=torch.long), None, values)
    assert {name: len(value) for name, value in values.by_name.items()} == {"entropy": 0}
    with pytest.raises(ValueError, match="knows no margin of a token, but entropy, is_most_probable, log_sum_squares"):
        TokenValues(frozenset({"entropy", "margin"}))


def test_the_slope_reads_the_values_of_the_pairs_that_were_read() -> None:
    """As a loss with weights of the policy's own probabilities (WPO) needs it: later pairs have 0, earlier ones are complete."""
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 8), torch.randn(100, 8), torch.randint(100, (9,))
    values, seen = TokenValues(frozenset({"log_sum_squares"})), []

    def loss(logps_R: Tensor) -> Tensor:
        seen.append(values.by_name["log_sum_squares"].clone())
        weights_P = torch.stack([part.mean() for part in (logps_R.detach() - seen[-1]).split([4, 5])]).exp()
        return (weights_P * torch.stack([part.sum().square() for part in logps_R.split([4, 5])])).sum()

    leaves = hidden.requires_grad_(), weight.requires_grad_()
    got = trained_logps(*leaves, targets, slope_of(loss), [slice(0, 4), slice(4, 9)], None, values)
    ours = torch.autograd.grad(loss(got), leaves)
    expected = wanted(hidden @ weight.t(), targets)["log_sum_squares"].float()
    for number, complete in enumerate((4, 9, 9)):
        assert torch.allclose(seen[number][:complete], expected[:complete], atol=1e-5)
        assert not seen[number][complete:].any()
    later = response_logps(*leaves, targets, None, values)
    for one, other in zip(ours, torch.autograd.grad(loss(later), leaves), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("megatron")
def test_values_of_a_policy_are_those_of_transformers(llama: Path) -> None:
    """Of packed pairs with a shared prompt, against each response alone, by logits of float32 that are reduced in float64."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.sources import resolve

    pairs, model = small.random_pairs(5, seed=4), small.load_llama(llama)
    row, values = pack_row(pairs.prompts, pairs.chosen, pairs.rejected), TokenValues(NAMES)
    open_policy(resolve(llama), "float32")(row, values=values)
    sides = [(pairs.prompts[i], side[i]) for i in range(5) for side in (pairs.chosen, pairs.rejected)]
    theirs = [response_values(model, prompt, response) for prompt, response in sides]
    agree(values.by_name, {name: torch.cat([one[name] for one in theirs]) for name in NAMES}, 1e-4)


def response_values(model, prompt, response) -> dict[str, Tensor]:
    """By one plain forward over prompt and response."""
    with torch.no_grad():
        log_p = small.reference_log_p(model, prompt, response)
    return wanted(log_p, torch.from_numpy(response).long())

"""Every objective against values derived by hand, and against what it says of itself. A new one gets its rows in GOLDEN.

Pair 0: chosen tokens -1, -2 (reference -1.5, -2.5), rejected -3 (reference -2).
Pair 1: chosen token -4 (reference -4), rejected -1, -1, -1 (reference -1, -1, -1).
So r_c is 1 and 0, r_r is -1 and 0, l_c is -3 and -4, l_r is -3 and -3; chosen tokens are 2 and 1, rejected ones 1 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.inputs import LossInputs, Responses, loss_inputs
from nemotron_dpo.objective.metric_names import REWARDS, loss_metric
from nemotron_dpo.objective.metrics import summed_names, sums
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.policy.logprobs import slope_of
from support.responses import by_response

LOGPS = (-1.0, -2.0, -3.0, -4.0, -1.0, -1.0, -1.0)
REF_LOGPS = (-1.5, -2.5, -2.0, -4.0, -1.0, -1.0, -1.0)
RESPONSE = (0, 0, 1, 2, 3, 3, 3)
LN2 = math.log(2)


@dataclass(frozen=True)
class Golden:
    """An objective by its name and settings, and what it must read.

    losses: of the two pairs. slopes: the derivative of a pair's loss by the log-prob of any one token of the chosen and of the
    rejected response, pair by pair. first: what each term reads where the policy is the reference, None where the data decide.
    """

    name: str
    settings: dict[str, Any]
    losses: tuple[float, float]
    slopes: tuple[tuple[float, float], tuple[float, float]]
    first: dict[str, float | None]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """-log sigmoid(-x), whose derivative is sigmoid(x)."""
    return math.log1p(math.exp(x))


GOLDEN = [
    # beta (r_c - r_r) is 0.5 * 2 = 1 and 0: softplus(-1) = 0.31326169 and ln 2. By r_c: -beta sigmoid(-1) = -0.13447071, -0.25.
    Golden(
        "dpo",
        {"beta": 0.5},
        (0.3132616875182228, LN2),
        ((-0.5 * sigmoid(-1), 0.5 * sigmoid(-1)), (-0.25, 0.25)),
        {"preference": LN2},
    ),
    # Means are 1/2 and -1, with margin 1.5: softplus(-0.75). A token counts one half and one; one and a third.
    Golden(
        "dpo",
        {"beta": 0.5, "average": True},
        (softplus(-0.75), LN2),
        ((-0.25 * sigmoid(-0.75), 0.5 * sigmoid(-0.75)), (-0.25, 0.25 / 3)),
        {"preference": LN2},
    ),
    # -l_c, which no rejected token moves.
    Golden("sft", {}, (3.0, 4.0), ((-1.0, 0.0), (-1.0, 0.0)), {"sft": None}),
    # 3 / 2 and 4 / 1.
    Golden("sft", {"average": True}, (1.5, 4.0), ((-0.5, 0.0), (-1.0, 0.0)), {"sft": None}),
]

RESPONSE_R = torch.tensor(RESPONSE)
each = pytest.mark.parametrize("row", GOLDEN, ids=lambda row: " ".join([row.name, *row.settings]))


def _made(row: Golden) -> Objective:
    return registry.make(row.name, **row.settings)


def _inputs(logps_R: Tensor, objective: Objective) -> LossInputs:
    """The two pairs, with the reference only where it is asked for."""
    ref_R = torch.tensor(REF_LOGPS, dtype=logps_R.dtype) if objective.needs.reference else None
    return loss_inputs(logps_R, ref_R, by_response(RESPONSE_R, 2))


def test_every_objective_has_golden_rows() -> None:
    assert {row.name for row in GOLDEN} == set(registry.entries())


@each
def test_losses_and_slopes(row: Golden) -> None:
    objective = _made(row)
    per_token = [row.slopes[response // 2][response % 2] for response in RESPONSE]
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        logps_R = torch.tensor(LOGPS, dtype=dtype)
        losses = objective.losses(_inputs(logps_R, objective))
        assert losses.loss.tolist() == pytest.approx(row.losses, abs=bound)
        slope_R = slope_of(lambda logps: objective.losses(_inputs(logps, objective)).loss.sum())(logps_R)
        assert slope_R.tolist() == pytest.approx(per_token, abs=bound)
        assert slope_R.dtype == losses.loss.dtype == dtype


@each
def test_gradients_are_those_of_differences(row: Golden) -> None:
    objective, logps_R = _made(row), torch.tensor(LOGPS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logps: objective.losses(_inputs(logps, objective)).loss, logps_R)


@each
def test_the_first_reading(row: Golden) -> None:
    """Policy = reference, on responses of one token, where the slope by a reward is that by the log-ratio."""
    objective = _made(row)
    ratio = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    sides = [Responses(-torch.ones_like(ratio[0]), torch.ones_like(ratio[0]), ratio[side]) for side in (0, 1)]
    terms = objective.losses(LossInputs(*sides)).terms
    assert {name: first and first.value for name, first in objective.terms.items()} == row.first
    for name, first in objective.terms.items():
        if first is not None:
            assert terms[name].item() == pytest.approx(first.value, abs=1e-12)
            (slope,) = torch.autograd.grad(terms[name].sum(), ratio, retain_graph=True)
            assert slope.abs().max().item() == pytest.approx(first.slope, abs=1e-12)
            assert first.formula


@each
def test_it_is_what_it_says(row: Golden) -> None:
    """Terms, rewards and sums have the names that are known before anything is computed; what it needs, it reads."""
    objective = _made(row)
    inputs = _inputs(torch.tensor(LOGPS), objective)
    losses = objective.losses(inputs)
    assert set(losses.terms) == set(objective.terms)
    assert (losses.rewards is not None) == objective.needs.rejected
    assert tuple(sums(losses, inputs)) == summed_names(objective)
    assert set(REWARDS) <= set(summed_names(objective)) or not objective.needs.rejected
    assert {loss_metric(term) for term in objective.terms} <= set(summed_names(objective))
    if objective.needs.reference:
        with pytest.raises(AttributeError, match="does not ask for it: say reference in its needs"):
            objective.losses(loss_inputs(torch.tensor(LOGPS), None, by_response(RESPONSE_R, 2)))


@each
def test_a_pair_counts_by_itself(row: Golden) -> None:
    """Unless it needs the whole batch: a micro batch must not change what a pair's loss is."""
    objective = _made(row)
    if objective.needs.whole_batch:
        pytest.skip("its pairs are coupled")
    logps_R, ref_R = torch.tensor(LOGPS), torch.tensor(REF_LOGPS) if objective.needs.reference else None
    whole = objective.losses(_inputs(logps_R, objective)).loss
    for pair, tokens in ((0, slice(0, 3)), (1, slice(3, 7))):
        part = None if ref_R is None else ref_R[tokens]
        alone = objective.losses(loss_inputs(logps_R[tokens], part, by_response(RESPONSE_R[tokens] - 2 * pair, 1))).loss
        assert torch.equal(alone, whole[pair : pair + 1])


@each
def test_rewards_far_apart_stay_finite(row: Golden) -> None:
    objective = _made(row)
    for margin in (1e4, -1e4):
        ratio = torch.tensor([[margin], [-margin]], requires_grad=True)
        logp = torch.full((2, 1), -2e4, requires_grad=True)
        sides = [Responses(logp[side], torch.ones(1), ratio[side]) for side in (0, 1)]
        loss = objective.losses(LossInputs(*sides)).loss.sum()
        slopes = torch.autograd.grad(loss, (ratio, logp), allow_unused=True)
        assert loss.isfinite()
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)

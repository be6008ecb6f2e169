"""Every objective against values derived by hand, and against what it says of itself. A new one gets its rows in GOLDEN.

Pair 0: chosen tokens -1, -2 (reference -1.5, -2.5), rejected -3 (reference -2).
Pair 1: chosen token -4 (reference -4), rejected -1, -1, -1 (reference -1, -1, -1).
So r_c is 1 and 0, r_r is -1 and 0, l_c is -3 and -4, l_r is -3 and -3; chosen tokens are 2 and 1, rejected ones 1 and 3.
The rows say that the responses are worth 2 and 0.5; 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.inputs import LossInputs, Responses, loss_inputs
from nemotron_dpo.objective.metric_names import REWARDS, loss_metric
from nemotron_dpo.objective.metrics import summed_names, sums
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.weighted_sum import after, state_of, with_state
from nemotron_dpo.policy.logprobs import slope_of
from support.responses import by_response

LOGPS = (-1.0, -2.0, -3.0, -4.0, -1.0, -1.0, -1.0)
REF_LOGPS = (-1.5, -2.5, -2.0, -4.0, -1.0, -1.0, -1.0)
RESPONSE = (0, 0, 1, 2, 3, 3, 3)
ROW_REWARDS = ((2.0, 0.5), (1.0, 2.0))
LN2 = math.log(2)


@dataclass(frozen=True)
class Golden:
    """An objective by its name and settings, and what it must read.

    losses: of the two pairs. slopes: the derivative of a pair's loss by the log-prob of any one token of the chosen and of the
    rejected response, pair by pair. first: what each term reads where the policy is the reference, None where the data decide.
    state, after: its numbers before and after it has seen these pairs. ref: log-probs of the reference, if not those above.
    """

    name: str
    settings: dict[str, Any]
    losses: tuple[float, ...]
    slopes: tuple[tuple[float, float], ...]
    first: dict[str, float | None]
    state: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    ref: tuple[float, ...] = REF_LOGPS


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """-log sigmoid(-x), whose derivative is sigmoid(x)."""
    return math.log1p(math.exp(x))


def bell(x: float) -> float:
    """The derivative of the sigmoid."""
    return sigmoid(x) * sigmoid(-x)


def kl(p: float, q: float) -> float:
    """Of two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def both(*slopes: float) -> tuple[tuple[float, float], ...]:
    """Of a loss that knows nothing but r_c - r_r: the slopes by r_c, pair by pair, and their opposites by r_r."""
    return tuple((slope, -slope) for slope in slopes)


CHI = 0.5 * (math.e + 1 - 1 / math.e + 1)
ODDS = (
    math.log(math.exp(-1.5) / (1 - math.exp(-1.5))) - math.log(math.exp(-3) / (1 - math.exp(-3))),
    math.log(math.exp(-4) / (1 - math.exp(-4))) - math.log(math.exp(-1) / (1 - math.exp(-1))),
)
NORMED = ((-0.25 * sigmoid(-0.75), 0.5 * sigmoid(-0.75)), (-0.25, 0.25 / 3))

GOLDEN = [
    # beta (r_c - r_r) is 0.5 * 2 = 1 and 0: softplus(-1) = 0.31326169 and ln 2. By r_c: -beta sigmoid(-1) = -0.13447071, -0.25.
    Golden("dpo", {"beta": 0.5}, (0.3132616875182228, LN2), both(-0.5 * sigmoid(-1), -0.25), {"preference": LN2}),
    # Means are 1/2 and -1, with margin 1.5: softplus(-0.75). A token counts one half and one; one and a third.
    Golden("dpo", {"beta": 0.5, "average": True}, (softplus(-0.75), LN2), NORMED, {"preference": LN2}),
    # By the logit: -(1-eps) sigmoid(-x) + eps sigmoid(x), times beta.
    Golden(
        "dpo",
        {"beta": 0.5, "label_smoothing": 0.1},
        (0.9 * softplus(-1) + 0.1 * softplus(1), LN2),
        both(0.5 * (-0.9 * sigmoid(-1) + 0.1 * sigmoid(1)), -0.5 * 0.4),
        {"preference": LN2},
    ),
    Golden("dpo_norm", {"beta": 0.5}, (softplus(-0.75), LN2), NORMED, {"preference": LN2}),
    # Over 1 - 2 eps = 0.8; by the logit (-0.9 sigmoid(-1) - 0.1 sigmoid(1)) / 0.8 and -0.5 / 0.8.
    Golden(
        "robust",
        {"beta": 0.5, "label_smoothing": 0.1},
        ((0.9 * softplus(-1) - 0.1 * softplus(1)) / 0.8, LN2),
        both(0.5 * (-0.9 * sigmoid(-1) - 0.1 * sigmoid(1)) / 0.8, -0.3125),
        {"preference": LN2},
    ),
    # 1 - 0.25 * 2 and 1 - 0; with beta 1, a margin of 2 is past the hinge.
    Golden("hinge", {"beta": 0.25}, (0.5, 1.0), both(-0.25, -0.25), {"preference": 1.0}),
    Golden("hinge", {"beta": 1.0}, (0.0, 1.0), both(0.0, -1.0), {"preference": 1.0}),
    # Means differ by 1.5 and 0, the target is 1: 0.5^2 and 1^2. By the margin 2 * 0.5 and 2 * -1; a token counts 1/2, 1; 1, 1/3.
    Golden("ipo", {"beta": 0.5}, (0.25, 1.0), ((0.5, -1.0), (-2.0, 2 / 3)), {"preference": 1.0}),
    # Sums differ by 2 and 0.
    Golden("ipo", {"beta": 0.5, "average": False}, (1.0, 1.0), both(2.0, -2.0), {"preference": 1.0}),
    # q = sigmoid(1) and 1/2, labels 0.9 and 0.1. By the logit q (1-q) (logit q - logit 0.9), logit 0.9 = ln 9.
    Golden(
        "exo_pair",
        {"beta": 0.5, "label_smoothing": 0.1},
        (
            sigmoid(1) * math.log(sigmoid(1) / 0.9) + sigmoid(-1) * math.log(sigmoid(-1) / 0.1),
            math.log(1 / (4 * 0.1 * 0.9)) / 2,
        ),
        both(0.5 * sigmoid(1) * sigmoid(-1) * (1 - math.log(9)), -0.125 * math.log(9)),
        {"preference": math.log(1 / 0.36) / 2},
    ),
    # beta r is 0.5 and -0.5; 0 and 0. By beta r_c: -sigmoid(-0.5) + sigmoid(0.5) / 2 and -1/4; by beta r_r: sigmoid(-0.5) / 2, 1/4.
    Golden(
        "nca_pair",
        {"beta": 0.5},
        (1.5 * softplus(-0.5) + 0.5 * softplus(0.5), 2 * LN2),
        ((0.5 * (-sigmoid(-0.5) + 0.5 * sigmoid(0.5)), 0.25 * sigmoid(-0.5)), (-0.125, 0.125)),
        {"preference": 2 * LN2},
    ),
    Golden(
        "bco_pair", {"beta": 0.5}, (2 * softplus(-0.5), 2 * LN2), both(-0.5 * sigmoid(-0.5), -0.25), {"preference": 2 * LN2}
    ),
    # Four rewards of mean 0.8 were seen; these are 0.5, -0.5, 0, 0. So delta is 3.2 / 8 = 0.4.
    Golden(
        "bco",
        {"beta": 0.5},
        (softplus(-0.1) + softplus(-0.9), softplus(0.4) + softplus(-0.4)),
        ((-0.5 * sigmoid(-0.1), 0.5 * sigmoid(-0.9)), (-0.5 * sigmoid(0.4), 0.5 * sigmoid(-0.4))),
        {"preference": 2 * LN2},
        state={"reward_mean": 0.8, "num_rewards": 4.0},
        after={"reward_mean": 0.4, "num_rewards": 8.0},
    ),
    # The targets are 2 and -2: (1-2)^2 + (-1+2)^2 and 4 + 4.
    Golden("sppo_hard", {"beta": 0.25}, (2.0, 8.0), both(-2.0, -4.0), {"preference": 8.0}),
    # sigmoid has the slope sigmoid(x) sigmoid(-x), 1/4 at 0.
    Golden("apo_zero", {"beta": 0.5}, (2 * sigmoid(-0.5), 1.0), both(-0.5 * bell(0.5), -0.125), {"preference": 1.0}),
    Golden(
        "apo_down",
        {"beta": 0.5},
        (sigmoid(0.5) + sigmoid(-1), 1.0),
        ((0.5 * (bell(0.5) - bell(1)), 0.5 * bell(1)), (0.0, 0.125)),
        {"preference": 1.0},
    ),
    # x = 1 and 0, m = sigmoid(2) and 1/2, whose slope is bell(2) / 0.5 and 1/2.
    Golden(
        "discopop",
        {"beta": 0.5, "discopop_tau": 0.5},
        (sigmoid(-2) * softplus(-1) + sigmoid(2) / math.e, LN2 / 2 + 0.5),
        both(
            0.5 * (2 * bell(2) * (1 / math.e - softplus(-1)) - sigmoid(-2) * sigmoid(-1) - sigmoid(2) / math.e),
            0.5 * ((1 - LN2) / 2 - 0.25 - 0.5),
        ),
        {"preference": LN2 / 2 + 0.5},
    ),
    # Pair 1 with a reference of -3.5: r_c = -0.5, d = -0.5, the penalty 3 * 0.5: 0.5 * -2 = -1. r_c counts there 1 + 3 times.
    Golden(
        "dpop",
        {"beta": 0.5, "dpop_lambda": 3.0},
        (softplus(-1), softplus(1)),
        ((-0.5 * sigmoid(-1), 0.5 * sigmoid(-1)), (-2 * sigmoid(1), 0.5 * sigmoid(1))),
        {"preference": LN2},
        ref=(-1.5, -2.5, -2.0, -3.5, -1.0, -1.0, -1.0),
    ),
    # beta d = 0.5 and 0, and sppo_hard's squares.
    Golden(
        "cal_dpo",
        {"beta": 0.25},
        (softplus(-0.5) + 2, LN2 + 8),
        both(-0.25 * sigmoid(-0.5) - 2, -0.125 - 4),
        {"preference": LN2 + 8},
    ),
    # phi(1) - phi(-1) = e + 1 - (1/e - 1); phi' is e + 1, 1/e + 1 and 2.
    Golden(
        "chi_po",
        {"beta": 0.5},
        (softplus(-CHI), LN2),
        ((-0.5 * (math.e + 1) * sigmoid(-CHI), 0.5 * (1 / math.e + 1) * sigmoid(-CHI)), (-0.5, 0.5)),
        {"preference": LN2},
    ),
    # Clipped to 2 * 0.5, where nothing moves it.
    Golden("chi_po", {"beta": 0.5, "chi_po_r_max": 0.5}, (softplus(-1), LN2), ((0, 0), (-0.5, 0.5)), {"preference": LN2}),
    # l_c - l_r is 0 and -1, the reference's -2 and -1. Sorted: -1, 0 and -2, -1; so both differ by 1, where dpo has 2 and 0.
    Golden("aot_paired", {"beta": 0.5}, (softplus(-0.5),) * 2, both(*(-0.5 * sigmoid(-0.5),) * 2), {"preference": LN2}),
    # r_c is 0, 1 and r_r -1, 0 when sorted.
    Golden(
        "aot_unpaired",
        {"beta": 0.5, "label_smoothing": 0.1},
        (0.9 * softplus(-0.5) + 0.1 * softplus(0.5),) * 2,
        both(*(0.5 * (-0.9 * sigmoid(-0.5) + 0.1 * sigmoid(0.5)),) * 2),
        {"preference": LN2},
    ),
    # M = 1 and M0 = 0.9 * 0 + 0.1 * 1: beta' = 0.5 (1 + 0.6 * 0.9) = 0.77.
    Golden(
        "beta_dpo",
        {"beta": 0.5},
        (softplus(-1.54), LN2),
        both(-0.77 * sigmoid(-1.54), -0.385),
        {"preference": LN2},
        state={"batch_margin": 7.0, "mean_margin": 0.0},
        after={"batch_margin": 1.0, "mean_margin": 0.1},
    ),
    # eta G is 0.75 and -0.5: (1 - 0.75)^2 and (0 + 0.5)^2.
    Golden("rpo_sq", {"beta": 0.5, "gt_reward_scale": 0.5}, (0.0625, 0.25), both(0.25, 0.5), {"preference": None}),
    # a = sigmoid(0.75) and sigmoid(-0.5), b = sigmoid(1) and 1/2. By the logit of b: b - a.
    Golden(
        "rpo_bwd_kl",
        {"beta": 0.5, "gt_reward_scale": 0.5},
        (kl(sigmoid(0.75), sigmoid(1)), kl(sigmoid(-0.5), 0.5)),
        both(0.5 * (sigmoid(1) - sigmoid(0.75)), 0.5 * (0.5 - sigmoid(-0.5))),
        {"preference": None},
    ),
    # By the logit of b: b (1-b) (logit b - logit a).
    Golden(
        "rpo_fwd_kl",
        {"beta": 0.5, "gt_reward_scale": 0.5},
        (kl(sigmoid(1), sigmoid(0.75)), kl(0.5, sigmoid(-0.5))),
        both(0.5 * bell(1) * 0.25, 0.5 * 0.25 * 0.5),
        {"preference": None},
    ),
    # G is 1.5 and -1, of which the second has no log.
    Golden(
        "odpo",
        {"beta": 0.5, "odpo_gap": "identity", "odpo_alpha": 2.0},
        (softplus(2), softplus(-2)),
        both(-0.5 * sigmoid(2), -0.5 * sigmoid(-2)),
        {"preference": None},
    ),
    # Per token -1.5, -3 and -4, -1: 2 * 1.5 - 0.5 and 2 * -3 - 0.5. A token counts 2 / 2, 2; 2, 2 / 3.
    Golden(
        "simpo",
        {"beta": 2.0},
        (softplus(-2.5), softplus(6.5)),
        ((-sigmoid(-2.5), 2 * sigmoid(-2.5)), (-2 * sigmoid(6.5), 2 / 3 * sigmoid(6.5))),
        {"preference": None},
    ),
    # R = 4 (1 - e^(-l'/4)), whose slope is e^(-l'/4).
    Golden(
        "alphapo",
        {"beta": 2.0},
        (softplus(0.5 - 8 * (math.exp(0.75) - math.exp(0.375))), softplus(0.5 - 8 * (math.exp(0.25) - math.e))),
        tuple(
            (-slope * math.exp(chosen / 4) * 2 / n_c, slope * math.exp(rejected / 4) * 2 / n_r)
            for slope, chosen, rejected, n_c, n_r in (
                (sigmoid(0.5 - 8 * (math.exp(0.75) - math.exp(0.375))), 1.5, 3, 2, 1),
                (sigmoid(0.5 - 8 * (math.exp(0.25) - math.e)), 4, 1, 1, 3),
            )
        ),
        {"preference": None},
    ),
    # l_c - l_r is 0 and -1; -l_c/n_c 1.5 and 4, whose tokens count 1/2 and 1.
    Golden(
        "cpo",
        {"beta": 0.5},
        (LN2 + 1.5, softplus(0.5) + 4),
        ((-0.25 - 0.5, 0.25), (-0.5 * sigmoid(0.5) - 1, 0.5 * sigmoid(0.5))),
        {"preference": None, "nll": None},
    ),
    # log odds of e^-1.5, e^-3; e^-4, e^-1, whose slope by l' is 1 / (1 - e^l').
    Golden(
        "orpo",
        {"orpo_lambda": 0.5},
        (1.5 + 0.5 * softplus(-ODDS[0]), 4 + 0.5 * softplus(-ODDS[1])),
        (
            (
                (-1 - 0.5 * sigmoid(-ODDS[0]) / (1 - math.exp(-1.5))) / 2,
                0.5 * sigmoid(-ODDS[0]) / (1 - math.exp(-3)),
            ),
            (
                -1 - 0.5 * sigmoid(-ODDS[1]) / (1 - math.exp(-4)),
                0.5 * sigmoid(-ODDS[1]) / (1 - math.exp(-1)) / 3,
            ),
        ),
        {"preference": None, "nll": None},
    ),
    # -l_c, which no rejected token moves.
    Golden("sft", {}, (3.0, 4.0), ((-1.0, 0.0), (-1.0, 0.0)), {"sft": None}),
    # 3 / 2 and 4 / 1.
    Golden("sft", {"average": True}, (1.5, 4.0), ((-0.5, 0.0), (-1.0, 0.0)), {"sft": None}),
]

RESPONSE_R = torch.tensor(RESPONSE)
each = pytest.mark.parametrize("row", GOLDEN, ids=lambda row: " ".join([row.name, *row.settings]))


def _made(row: Golden) -> Objective:
    objective = registry.make(row.name, **row.settings)
    return with_state(objective, row.state)


def _inputs(logps_R: Tensor, row: Golden, pair: int | None = None) -> LossInputs:
    """The pairs, or one of them, with what is asked for and nothing else."""
    objective, tokens = _made(row), slice(None)
    if pair is not None:
        tokens = (slice(0, 3), slice(3, 7))[pair]
    ref_R = torch.tensor(row.ref, dtype=logps_R.dtype)[tokens] if objective.needs.reference else None
    response_R = RESPONSE_R[tokens] - 2 * (pair or 0)
    pairs = loss_inputs(logps_R[tokens], ref_R, by_response(response_R, 2 if pair is None else 1))
    return (
        with_rows(pairs, ROW_REWARDS if pair is None else ROW_REWARDS[pair : pair + 1])
        if objective.needs.row_rewards
        else pairs
    )


def with_rows(pairs: LossInputs, rewards: tuple[tuple[float, float], ...]) -> LossInputs:
    chosen, rejected = torch.tensor(rewards, dtype=pairs.chosen.logp.dtype).T
    return LossInputs(replace(pairs.chosen, given_row_reward=chosen), replace(pairs.rejected, given_row_reward=rejected))


def _seen(row: Golden, pairs: LossInputs) -> Objective:
    """The objective as it is when its losses are asked for: it has seen the batch already, if it needs the whole of it."""
    return after(_made(row), pairs) if _made(row).needs.whole_batch else _made(row)


def test_every_objective_has_golden_rows() -> None:
    assert {row.name for row in GOLDEN} == set(registry.entries())


@each
def test_losses_and_slopes(row: Golden) -> None:
    per_token = [row.slopes[response // 2][response % 2] for response in RESPONSE]
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        logps_R = torch.tensor(LOGPS, dtype=dtype)
        objective = _seen(row, _inputs(logps_R, row))
        losses = objective.losses(_inputs(logps_R, row))
        assert losses.loss.tolist() == pytest.approx(row.losses, rel=bound, abs=bound)
        slope_R = slope_of(lambda logps, objective=objective: objective.losses(_inputs(logps, row)).loss.sum())(logps_R)
        assert slope_R.tolist() == pytest.approx(per_token, rel=bound, abs=bound)
        assert slope_R.dtype == losses.loss.dtype == dtype
        assert dict(state_of(objective)) == pytest.approx(row.after)


@each
def test_gradients_are_those_of_differences(row: Golden) -> None:
    logps_R = torch.tensor(LOGPS, dtype=torch.float64, requires_grad=True)
    objective = _seen(row, _inputs(logps_R, row))
    assert torch.autograd.gradcheck(lambda logps: objective.losses(_inputs(logps, row)).loss, logps_R)


def first_terms(objective: Objective, moved: tuple[float, float] = (0.0, 0.0)) -> dict[str, float]:
    """Its terms where policy = reference but for `moved`: one pair, responses of one token, float64."""
    ratio = torch.tensor(moved, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    chosen, rejected = (Responses(side - one, one, side[None]) for side in ratio)
    pairs = LossInputs(chosen, rejected)
    objective = after(objective, pairs) if objective.needs.whole_batch else objective
    return {name: term.item() for name, term in objective.losses(pairs).terms.items()}


@each
def test_the_first_reading(row: Golden) -> None:
    """The value, and the slope by a reward as the steepest of four small steps: at a kink the sides differ."""
    objective, step = registry.make(row.name, **row.settings), 1e-6
    assert {name: first and first.value for name, first in objective.terms.items()} == pytest.approx(row.first)
    for name, first in objective.terms.items():
        if first is not None:
            here = first_terms(objective)[name]
            assert here == pytest.approx(first.value, abs=1e-12)
            steps = [(step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)]
            slopes = [abs(first_terms(objective, moved)[name] - here) / step for moved in steps]
            assert max(slopes) == pytest.approx(first.slope, abs=1e-4)
            assert first.formula


@each
def test_it_is_what_it_says(row: Golden) -> None:
    """Terms, rewards and sums have the names that are known before anything is computed; what it needs, it reads."""
    objective = _made(row)
    inputs = _inputs(torch.tensor(LOGPS), row)
    losses = objective.losses(inputs)
    assert set(losses.terms) == set(objective.terms)
    assert (losses.rewards is not None) == objective.needs.rejected
    assert tuple(sums(losses, inputs)) == summed_names(objective)
    assert set(REWARDS) <= set(summed_names(objective)) or not objective.needs.rejected
    assert {loss_metric(term) for term in objective.terms} <= set(summed_names(objective))
    assert objective.needs.state == bool(state_of(objective)) == hasattr(objective, "after")
    for need, values in (("reference", "given_log_ratio"), ("row_rewards", "given_row_reward")):
        bare = LossInputs(replace(inputs.chosen, **{values: None}), replace(inputs.rejected, **{values: None}))
        if getattr(objective.needs, need):
            with pytest.raises(AttributeError, match=f"does not ask for it: say {need} in its needs"):
                objective.losses(bare)
        else:
            objective.losses(bare)


@each
def test_a_pair_counts_by_itself(row: Golden) -> None:
    """Unless it needs the whole batch: a micro batch must not change what a pair's loss is."""
    objective = _made(row)
    if objective.needs.whole_batch:
        pytest.skip("its pairs are coupled")
    logps_R = torch.tensor(LOGPS)
    whole = objective.losses(_inputs(logps_R, row)).loss
    for pair in (0, 1):
        assert torch.equal(objective.losses(_inputs(logps_R, row, pair)).loss, whole[pair : pair + 1])


@each
def test_rewards_far_apart_stay_finite(row: Golden) -> None:
    """In float32, also where every token has probability 1 or the responses have nothing in common."""
    for chosen, rejected in ((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (88.0, 90.0), (-88.0, -90.0), (0.0, 0.0)):
        ratio = torch.tensor([[chosen], [rejected]], requires_grad=True)
        for logp in (-2e4, 0.0):
            logp = torch.full((2, 1), logp, requires_grad=True)
            chosen, rejected = (Responses(logp[side], torch.ones(1), ratio[side]) for side in (0, 1))
            pairs = with_rows(LossInputs(chosen, rejected), ((1.0, 0.5),))
            objective = after(_made(row), pairs) if _made(row).needs.state else _made(row)
            loss = objective.losses(pairs).loss.sum()
            slopes = torch.autograd.grad(loss, (ratio, logp), allow_unused=True)
            assert loss.isfinite()
            assert all(slope.isfinite().all() for slope in slopes if slope is not None)


def test_odpo_of_the_log_of_the_gap() -> None:
    """Gaps of e and 0: the logit 0.5 * 1 - 2, and a pair that asks for nothing. A gap below 0 has no log, which is not hidden."""
    objective = registry.make("odpo", beta=0.5, odpo_alpha=2.0)
    one, ratio = torch.ones(3), torch.ones(3, requires_grad=True)
    pairs = LossInputs(Responses(-one, one, ratio), Responses(-one, one, 0 * one))
    losses = objective.losses(with_rows(pairs, ((math.e, 0.0), (1.0, 1.0), (0.0, 1.0)))).loss
    assert losses[:2].tolist() == pytest.approx([softplus(1.5), 0.0])
    assert losses[2].isnan()
    (slope,) = torch.autograd.grad(losses[:2].sum(), ratio)
    assert slope[:2].tolist() == pytest.approx([-0.5 * sigmoid(1.5), 0.0])
    assert objective.needs.ordered_rewards
    for settings in ({"odpo_alpha": 0.0}, {"odpo_gap": "identity"}):  # the first is dpo, whatever the gaps are
        other = registry.make("odpo", beta=0.5, **settings)
        assert not other.needs.ordered_rewards
        assert other.losses(with_rows(pairs, ((math.e, 0.0), (1.0, 1.0), (0.0, 1.0)))).loss.isfinite().all()
    equal = registry.make("odpo", beta=0.5, odpo_alpha=0.0).losses(with_rows(pairs, ((1.0, 1.0),) * 3)).loss
    assert equal.tolist() == pytest.approx([softplus(-0.5)] * 3)


def test_aot_keeps_the_digits_of_log_ratios() -> None:
    """Log-probs of -1000 nats have steps of 2^-14 in float32; where both are sorted alike, D is the log-ratio to the last bit."""
    ratio = torch.tensor([1e-7, -2e-7, 3e-7])
    one = torch.ones(3)
    pairs = LossInputs(Responses(torch.tensor([-1000.0, -900.0, -800.0]), one, ratio), Responses(-1000 * one, one, 0 * one))
    loss = registry.make("aot_paired", beta=1.0).losses(pairs).loss
    assert torch.equal(loss, -torch.nn.functional.logsigmoid(ratio))
    # Sorted, D is 1e-7, -2e-7 and 3e-7 in nats, of a sigmoid that float32 knows to 6e-8.
    steep = registry.make("aot_paired", beta=1e6).losses(pairs).loss
    assert steep.tolist() == pytest.approx([softplus(-0.1), softplus(0.2), softplus(-0.3)], rel=1e-6)

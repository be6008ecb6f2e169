"""What goes across objectives; each comment derives the numbers. The pairs are those of test_objectives.

Pair 0: chosen tokens -1, -2 (reference -1.5, -2.5), rejected -3 (reference -2).
Pair 1: chosen token -4 (reference -4), rejected -1, -1, -1 (reference -1, -1, -1).
So r_c is 1 and 0, r_r is -1 and 0; past the shorter response there are token 1 of the chosen one, and tokens 1 and 2 of the other.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.inputs import LossInputs, Responses, loss_inputs, with_tails
from nemotron_dpo.objective.modified import modified, modifiers
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.settings import SettingError
from nemotron_dpo.objective.weighted_sum import after, mixture, state_of, with_state
from nemotron_dpo.policy.logprobs import slope_of
from support.responses import by_response

LOGPS = (-1.0, -2.0, -3.0, -4.0, -1.0, -1.0, -1.0)
REF_LOGPS = (-1.5, -2.5, -2.0, -4.0, -1.0, -1.0, -1.0)
RESPONSE_R = torch.tensor((0, 0, 1, 2, 3, 3, 3))
IS_TAIL = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
# Of each token of the four responses.
LOG_SUM_SQUARES = (-0.5, -1.5, -2.0, -1.0, -0.5, -0.5, -0.5)
LN2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def made(name: str, modifier: dict[str, Any], **values: Any) -> Objective:
    (objective,) = modified([(registry.find(name), registry.make(name, **values))], **modifier)
    return objective


def inputs(logps_R: Tensor, objective: Objective) -> LossInputs:
    """What the objective asks for and nothing else."""
    sums, dtype = by_response(RESPONSE_R, 2), logps_R.dtype
    ref_R = torch.tensor(REF_LOGPS, dtype=dtype) if objective.needs.reference else None
    values = {name: torch.tensor(LOG_SUM_SQUARES, dtype=dtype) for name in objective.needs.token_values}
    pairs = loss_inputs(logps_R, ref_R, sums, values)
    return with_tails(pairs, logps_R, ref_R, sums, torch.tensor(IS_TAIL, dtype=dtype)) if objective.needs.tails else pairs


# w = e^(mean of logp - log_sum_squares): pair 0 e^(-0.5) and e^(-1); pair 1 e^(-3) and e^(-0.5).
WEIGHTS = (math.exp(-1.5), math.exp(-3.5))
# A modifier, and what dpo reads with beta 0.5: losses, and the slope by each token.
ROWS: list[tuple[dict[str, Any], tuple[float, float], list[float]]] = [
    # 1 - e^-1 and 1 - e; 0: the logit (e - 1/e) / 2. The slope by r is e^-r: 1/e and e.
    (
        {"f_divergence": "forward_kl"},
        (softplus(-math.sinh(1)), LN2),
        [-0.5 / math.e * sigmoid(-math.sinh(1))] * 2 + [0.5 * math.e * sigmoid(-math.sinh(1)), -0.25, 0.25, 0.25, 0.25],
    ),
    # log sigmoid(1) - log sigmoid(-1) = 1, so the logit is 0.5; the slope by r is sigmoid(-r).
    (
        {"f_divergence": "js_divergence"},
        (softplus(-0.5), LN2),
        [-0.5 * sigmoid(-1) * sigmoid(-0.5)] * 2 + [0.5 * sigmoid(1) * sigmoid(-0.5), -0.125, 0.125, 0.125, 0.125],
    ),
    # 2 (1 - e^(-r/2)): 2 (e^0.5 - e^-0.5) / 2 is the logit; the slope by r is e^(-r/2). 0.5 is the default.
    (
        {"f_divergence": "alpha_divergence"},
        (softplus(-2 * math.sinh(0.5)), LN2),
        [-0.5 * math.exp(-0.5) * sigmoid(-2 * math.sinh(0.5))] * 2
        + [0.5 * math.exp(0.5) * sigmoid(-2 * math.sinh(0.5)), -0.25, 0.25, 0.25, 0.25],
    ),
    # e^r - 1: the logit (e - 1/e) / 2 again; the slope by r is e^r.
    (
        {"f_divergence": "alpha_divergence", "f_alpha": 2.0},
        (softplus(-math.sinh(1)), LN2),
        [-0.5 * math.e * sigmoid(-math.sinh(1))] * 2 + [0.5 / math.e * sigmoid(-math.sinh(1)), -0.25, 0.25, 0.25, 0.25],
    ),
    # r_c = 0.5 + 0.25 * 0.5, r_r = -1: the logit 0.8125. A token of the tail counts a quarter.
    (
        {"ld_alpha": 0.25},
        (softplus(-0.8125), LN2),
        [-0.5 * sigmoid(-0.8125), -0.125 * sigmoid(-0.8125), 0.5 * sigmoid(-0.8125), -0.25, 0.25, 0.0625, 0.0625],
    ),
    # n_c - n_r is 1 and -2: 1 + 0.1 and 0 - 0.2.
    (
        {"length_alpha": 0.1},
        (softplus(-1.1), softplus(0.2)),
        [-0.5 * sigmoid(-1.1)] * 2 + [0.5 * sigmoid(-1.1), -0.5 * sigmoid(0.2)] + [0.5 * sigmoid(0.2)] * 3,
    ),
    (
        {"wpo_weighting": True},
        (WEIGHTS[0] * softplus(-1), WEIGHTS[1] * LN2),
        [-0.5 * WEIGHTS[0] * sigmoid(-1)] * 2 + [0.5 * WEIGHTS[0] * sigmoid(-1), -0.25 * WEIGHTS[1]] + [0.25 * WEIGHTS[1]] * 3,
    ),
    # All at once: r_c = 0.625, r_r = -1 through e^r - 1, offset by 0.1 and -0.2, weighted as above, for the log-probs are whole.
    (
        {"f_divergence": "alpha_divergence", "f_alpha": 2.0, "ld_alpha": 0.25, "length_alpha": 0.1, "wpo_weighting": True},
        (WEIGHTS[0] * softplus(-(x := 0.5 * (math.exp(0.625) - math.exp(-1)) + 0.1)), WEIGHTS[1] * softplus(0.2)),
        [
            -0.5 * math.exp(0.625) * WEIGHTS[0] * sigmoid(-x),
            -0.125 * math.exp(0.625) * WEIGHTS[0] * sigmoid(-x),
            0.5 * math.exp(-1) * WEIGHTS[0] * sigmoid(-x),
            -0.5 * WEIGHTS[1] * sigmoid(0.2),
            0.5 * WEIGHTS[1] * sigmoid(0.2),
            0.125 * WEIGHTS[1] * sigmoid(0.2),
            0.125 * WEIGHTS[1] * sigmoid(0.2),
        ],
    ),
]


@pytest.mark.parametrize(
    ("modifier", "losses", "slopes"), ROWS, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_losses_and_slopes(modifier: dict[str, Any], losses: tuple[float, float], slopes: list[float]) -> None:
    objective = made("dpo", modifier, beta=0.5)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        logps_R = torch.tensor(LOGPS, dtype=dtype)
        assert objective.losses(inputs(logps_R, objective)).loss.tolist() == pytest.approx(losses, rel=bound)
        slope_R = slope_of(lambda logps: objective.losses(inputs(logps, objective)).loss.sum())(logps_R)
        assert slope_R.tolist() == pytest.approx(slopes, rel=bound)


def test_every_modifier_has_a_row_and_tells_what_people_ask() -> None:
    assert {name for modifier, _, _ in ROWS for name in modifier} == {
        setting for modifier in modifiers().values() for setting in modifier.settings
    }
    for name, modifier in modifiers().items():
        assert modifier.settings[0] == name
        assert modifier.formula
        assert modifier.source


def test_rewards_are_log_ratios_whatever_the_divergence() -> None:
    for modifier, chosen in (({"f_divergence": "js_divergence"}, 1.0), ({"length_alpha": 1.0}, 1.0), ({"ld_alpha": 0.0}, 0.5)):
        objective = made("dpo", modifier, beta=0.5)
        rewards = objective.losses(inputs(torch.tensor(LOGPS), objective)).rewards
        assert rewards is not None
        assert rewards.chosen.tolist() == [chosen, 0.0]


def as_the_reference(side: Responses) -> Responses:
    """A response whose log-probs are those of the reference."""
    zero = torch.zeros_like(side.logp)
    tails = side.given_tails and replace(side.given_tails, log_ratio=zero)
    return replace(side, given_log_ratio=zero, given_tails=tails)


def test_every_objective_with_every_modifier_that_it_takes() -> None:
    """It makes a difference, slopes are those of differences, and where policy = reference it reads what it says."""
    tried = {"f_divergence": "js_divergence", "ld_alpha": 0.25, "length_alpha": 0.1, "wpo_weighting": True}
    off_kinks_R = torch.tensor(LOGPS, dtype=torch.float64) + 0.1 * torch.arange(7)
    for entry in registry.entries().values():
        values = {"beta": 0.5} if "beta" in entry.settings else {}
        values |= {"odpo_gap": "identity"} if entry.name == "odpo" else {}
        for name in entry.modifiers:
            objective = made(entry.name, {name: tried[name]}, **values)

            def given(logps_R: Tensor, objective: Objective = objective) -> LossInputs:
                pairs = inputs(logps_R, objective)
                with_rows = pairs.each(lambda side: replace(side, given_row_reward=side.num_tokens))
                return with_rows if objective.needs.row_rewards else pairs

            if name != "wpo_weighting":  # whose slope leaves the weights out
                leaf_R = off_kinks_R.clone().requires_grad_()
                assert torch.autograd.gradcheck(lambda logps, of=objective, given=given: of.losses(given(logps)).loss, leaf_R)
            plain = registry.make(entry.name, **values).losses(given(off_kinks_R)).loss
            assert not torch.allclose(objective.losses(given(off_kinks_R)).loss, plain), (entry.name, name)
            pairs = given(off_kinks_R).each(as_the_reference)
            readings = after(objective, pairs).losses(pairs).terms
            for term, first in objective.terms.items():
                assert first is None or readings[term].tolist() == pytest.approx([first.value] * 2), (entry.name, name)


def test_a_divergence_is_finite_in_float32() -> None:
    for values in ({"f_divergence": "forward_kl"}, {"f_divergence": "alpha_divergence", "f_alpha": 3.0}):
        objective = made("dpo", values, beta=0.1)
        for scale in (1e4, -1e4, 100.0, -100.0):
            logps_R = torch.tensor(REF_LOGPS) + scale * torch.tensor((1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0))
            logps_R.requires_grad_()
            loss = objective.losses(inputs(logps_R, objective)).loss.sum()
            loss.backward()
            assert loss.isfinite()
            assert logps_R.grad is not None
            assert logps_R.grad.isfinite().all()


def test_first_readings() -> None:
    for modifier, first in (
        ({"f_divergence": "forward_kl"}, (LN2, 0.25)),
        ({"f_divergence": "js_divergence"}, (LN2, 0.125)),
        ({"ld_alpha": 0.5}, (LN2, 0.25)),
        ({"length_alpha": 0.5}, None),
        ({"wpo_weighting": True}, None),
        ({"wpo_weighting": True, "ld_alpha": 0.5}, None),
    ):
        reading = made("dpo", modifier, beta=0.5).terms["preference"]
        assert (reading and (reading.value, reading.slope)) == first


def test_what_changes_nothing_is_left_out() -> None:
    for values in (
        {},
        {"f_divergence": "reverse_kl", "ld_alpha": 1.0, "length_alpha": 0.0, "wpo_weighting": False},
        {"f_divergence": "alpha_divergence", "f_alpha": 1.0},
    ):
        assert made("dpo", values, beta=0.5) == registry.make("dpo", beta=0.5)
        assert made("sft", values) == registry.make("sft")


@pytest.mark.parametrize(
    ("name", "modifier", "message"),
    [
        (
            "apo_zero",
            {"f_divergence": "forward_kl"},
            "f_divergence has no meaning with apo_zero: it goes with beta_dpo, discopop, dpo,",
        ),
        ("ipo", {"length_alpha": 0.1}, "length_alpha has no meaning with ipo: it goes with"),
        ("simpo", {"ld_alpha": 0.5}, "ld_alpha has no meaning with simpo: it goes with aot_paired,"),
        ("aot", {"wpo_weighting": True}, "wpo_weighting has no meaning with aot_paired: it goes with"),
        ("sft", {"wpo_weighting": True}, "wpo_weighting has no meaning with sft: it goes with"),
        (
            "dpo",
            {"f_divergence": "kl"},
            "f_divergence is 'kl': there are reverse_kl, forward_kl, js_divergence, alpha_divergence",
        ),
        ("dpo", {"f_alpha": 0.3}, "f_alpha belongs to f_divergence=alpha_divergence, which is reverse_kl"),
        ("dpo", {"ld_alpha": 1.5}, "ld_alpha is 1.5: must be at most 1"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(name: str, modifier: dict[str, Any], message: str) -> None:
    values = {"beta": 0.1} if "beta" in registry.find(name).settings else {}
    with pytest.raises(SettingError, match=f"^{re.escape(message)}") as refused:
        made(name, modifier, **values)
    assert refused.value.setting == message.split()[0]


def test_a_mixture() -> None:
    """Its terms have the names of its objectives, sft is not modified, and the numbers of its parts go by their names."""
    names = ("dpo", "bco", "sft")
    parts = [(registry.find(name), registry.make(name, **({} if name == "sft" else {"beta": 0.5}))) for name in names]
    objectives = modified(parts, ld_alpha=0.25)
    whole = mixture(zip(names, (2.0, 0.5, 0.1), objectives, strict=True))
    assert {name: first and first.formula for name, first in whole.terms.items()} == {
        "dpo": "ln 2",
        "bco": "2 ln 2",
        "sft": None,
    }
    assert dict(whole.state) == {"bco.reward_mean": 0.0, "bco.num_rewards": 0.0}
    pairs = inputs(torch.tensor(LOGPS, dtype=torch.float64), whole)
    seen = whole.after(pairs)
    # Shortened rewards are 0.625, -1, 0 and 0, times 0.5 and over 4.
    mean = -0.375 / 8
    assert dict(seen.state) == {"bco.reward_mean": mean, "bco.num_rewards": 4.0}
    assert whole.with_state(seen.state) == seen
    losses = seen.losses(pairs)
    terms = {name: term.tolist() for name, term in losses.terms.items()}
    assert terms["dpo"] == pytest.approx([softplus(-0.8125), LN2])
    assert terms["bco"] == pytest.approx([softplus(mean - 0.3125) + softplus(-0.5 - mean), softplus(mean) + softplus(-mean)])
    assert terms["sft"] == [3.0, 4.0]
    sums = [2 * dpo + 0.5 * bco + 0.1 * sft for dpo, bco, sft in zip(*(terms[name] for name in names), strict=True)]
    assert losses.loss.tolist() == pytest.approx(sums)
    assert losses.rewards is not None
    assert losses.rewards.chosen.tolist() == [0.625, 0.0]


def test_a_mixture_names_both_terms_of_an_objective() -> None:
    cpo, sft = registry.make("cpo", beta=0.1), registry.make("sft")
    assert list(mixture([("cpo", 1.0, cpo), ("sft", 1.0, sft)]).terms) == ["cpo", "cpo_nll", "sft"]
    with pytest.raises(SettingError, match=r"^preference_loss has cpo 2 times: give it one weight$"):
        mixture([("cpo", 1.0, cpo), ("cpo", 2.0, cpo)])


def test_state_goes_through_names_and_modifiers() -> None:
    objective = made("beta_dpo", {"ld_alpha": 0.25}, beta=0.5)
    pairs = inputs(torch.tensor(LOGPS, dtype=torch.float64), objective)
    seen = after(objective, pairs)
    # d is 1.625 and 0.
    assert state_of(seen) == pytest.approx({"batch_margin": 0.8125, "mean_margin": 0.08125})
    assert with_state(objective, state_of(seen)) == seen
    assert after(registry.make("dpo", beta=0.5), pairs) == registry.make("dpo", beta=0.5)

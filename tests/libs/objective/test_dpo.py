"""Loss values derived by hand; each comment shows the sum."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.dpo import Objective, Responses, pair_losses, responses

# Two pairs. Pair 0: chosen tokens -1, -2 (reference -1.5, -2.5), rejected -3 (reference -2).
#            Pair 1: chosen token -4 (reference -4), rejected -1, -1, -1 (reference -1, -1, -1).
LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -1.0, -1.0, -1.0])
REF = torch.tensor([-1.5, -2.5, -2.0, -4.0, -1.0, -1.0, -1.0])
RESPONSE = torch.tensor([0, 0, 1, 2, 3, 3, 3])
SIDES = responses(LOGPS, REF, RESPONSE, 2)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_sums_by_response() -> None:
    assert SIDES.chosen_logp.tolist() == [-3.0, -4.0]
    assert SIDES.chosen_log_ratio.tolist() == [1.0, 0.0]  # (-1 + 1.5) + (-2 + 2.5); 0
    assert SIDES.rejected_log_ratio.tolist() == [-1.0, 0.0]
    assert SIDES.chosen_tokens.tolist() == [2.0, 1.0]
    assert SIDES.rejected_tokens.tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # -log sigmoid(0.5 * (1 - (-1))) = softplus(-1) = 0.31326169; the second pair has no margin: ln 2
        (Objective(beta=0.5), [0.31326169, math.log(2)]),
        # averaged rewards 1/2 and -1: softplus(-0.5 * 1.5) = 0.38687110
        (Objective(beta=0.5, preference_average=True), [softplus(-0.75), math.log(2)]),
        # SFT alone: -(-3) and -(-4)
        (Objective(beta=0.5, preference_weight=0, sft_weight=1), [3.0, 4.0]),
        # averaged over tokens: 3/2 and 4/1
        (Objective(beta=0.5, preference_weight=0, sft_weight=1, sft_average=True), [1.5, 4.0]),
        # 2 * softplus(-1) + 0.1 * 3 = 0.92652338; 2 * ln 2 + 0.1 * 4 = 1.78629436
        (Objective(beta=0.5, preference_weight=2, sft_weight=0.1), [0.92652338, 1.78629436]),
    ],
)
def test_loss_of_each_pair(objective: Objective, expected: list[float]) -> None:
    assert pair_losses(objective, SIDES).loss.tolist() == pytest.approx(expected, abs=1e-6)


def test_large_margins_do_not_overflow() -> None:
    one = torch.ones(1)
    sides = Responses(-one, -1e4 * one, 1e4 * one, one, one)
    assert pair_losses(Objective(beta=1.0), sides).loss.item() == pytest.approx(2e4)


def test_metrics_are_named_and_normalised_as_nemo_rl_does() -> None:
    objective = Objective(beta=0.5)
    values = metrics.means(metrics.sums(pair_losses(objective, SIDES), SIDES), objective)
    assert values["loss"] == pytest.approx((0.31326169 + math.log(2)) / 2, abs=1e-6)
    assert values["accuracy"] == 0.5  # strictly greater: a margin of 0 does not count
    assert values["rewards_chosen_mean"] == 0.5  # not multiplied by beta
    assert values["rewards_rejected_mean"] == -0.5
    assert values["num_valid_samples"] == 2
    assert values["global_valid_seqs"] == 4
    assert values["global_valid_toks"] == 7


def test_metrics_do_not_depend_on_how_pairs_are_grouped() -> None:
    objective = Objective(beta=0.5)
    whole = metrics.sums(pair_losses(objective, SIDES), SIDES)
    parts = []
    for first, last, tokens in ((0, 1, slice(0, 3)), (1, 2, slice(3, 7))):
        sides = responses(LOGPS[tokens], REF[tokens], RESPONSE[tokens] - 2 * first, last - first)
        parts.append(metrics.sums(pair_losses(objective, sides), sides))
    assert torch.allclose(whole, sum(parts[1:], parts[0]))


@pytest.mark.parametrize(
    ("average", "bound"),
    [
        (False, 2.0**-13),  # 2^10 roundings of 2^-24, times the root of 2 + 2 tokens
        (True, 2.0**-14),  # of means of 2 tokens: the root of 1/2 + 1/2
    ],
)
def test_a_margin_within_rounding_is_no_preference(average: bool, bound: float) -> None:
    objective, tokens = Objective(beta=0.5, preference_average=average), torch.tensor([2.0, 2.0, 2.0])
    margins = torch.tensor([0.99, 1.01, -1.01]) * bound * (2 if average else 1)
    sides = Responses(-tokens, margins, torch.zeros(3), tokens, tokens)
    values = metrics.means(metrics.sums(pair_losses(objective, sides), sides), objective)
    assert values["accuracy"] == pytest.approx(1 / 3)

"""What is summed over pairs and what records call it; each comment shows the sum."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_dpo.objective import metrics
from nemotron_dpo.objective.inputs import ROUNDINGS, LossInputs, Responses, loss_inputs
from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.objective.losses.sft import Sft
from nemotron_dpo.objective.metric_names import TOKEN_METRICS, keeps_the_worst, of_pairs, selectors
from nemotron_dpo.objective.protocol import Needs, Objective
from nemotron_dpo.objective.weighted_sum import weighted_sum
from support.responses import by_response

# Two pairs. Pair 0: chosen tokens -1, -2 (reference -1.5, -2.5), rejected -3 (reference -2).
#            Pair 1: chosen token -4 (reference -4), rejected -1, -1, -1 (reference -1, -1, -1).
LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -1.0, -1.0, -1.0])
REF = torch.tensor([-1.5, -2.5, -2.0, -4.0, -1.0, -1.0, -1.0])
RESPONSE = torch.tensor([0, 0, 1, 2, 3, 3, 3])
PAIRS = loss_inputs(LOGPS, REF, by_response(RESPONSE, 2))
LOSS = 0.31326169  # -log sigmoid(0.5 * (1 - (-1))), of pair 0; pair 1 has no margin: ln 2


def _means(objective: Objective, pairs: LossInputs, *, token_metrics: bool = False) -> dict[str, float]:
    sums = metrics.sums(objective.losses(pairs), pairs)
    return metrics.means({name: value.item() for name, value in sums.items()}, objective, token_metrics=token_metrics)


def test_sums_by_response() -> None:
    assert PAIRS.chosen.logp.tolist() == [-3.0, -4.0]
    assert PAIRS.rejected.logp.tolist() == [-3.0, -3.0]
    assert PAIRS.chosen.log_ratio.tolist() == [1.0, 0.0]  # (-1 + 1.5) + (-2 + 2.5); 0
    assert PAIRS.rejected.log_ratio.tolist() == [-1.0, 0.0]
    assert PAIRS.chosen.num_tokens.tolist() == [2.0, 1.0]
    assert PAIRS.rejected.num_tokens.tolist() == [1.0, 3.0]


def test_what_is_not_asked_for_is_not_given() -> None:
    pairs = loss_inputs(LOGPS, None, by_response(RESPONSE, 2))
    for read, need in ((lambda: pairs.chosen.log_ratio, "reference"), (lambda: pairs.chosen.row_reward, "row_rewards")):
        with pytest.raises(AttributeError, match=f"say {need} in its needs"):
            read()


def test_a_log_ratio_keeps_what_long_sums_lose() -> None:
    """2^13 tokens of -8 nats and a 2^-12th more: the sums differ by 2, and 2^16 in float32 has steps of 2^-8."""
    count = 2**13
    logps_R = torch.full((2 * count,), -8.0)
    ref_R = logps_R.clone()
    ref_R[:count] -= 2.0**-12
    pairs = loss_inputs(logps_R, ref_R, by_response(torch.arange(2).repeat_interleave(count), 1))
    assert pairs.chosen.log_ratio.tolist() == [2.0]


def test_metrics_have_the_names_of_nemo_rl_and_are_means() -> None:
    values = _means(Dpo(beta=0.5), PAIRS)
    assert values == pytest.approx(
        {
            "loss": (LOSS + math.log(2)) / 2,
            "preference_loss": (LOSS + math.log(2)) / 2,
            "sft_loss": 0.0,
            "accuracy": 0.5,  # strictly greater: a margin of 0 does not count
            "rewards_chosen_mean": 0.5,  # not multiplied by beta
            "rewards_rejected_mean": -0.5,
            "num_valid_samples": 2,
            "global_valid_seqs": 4,
            "global_valid_toks": 7,
        }
    )
    assert list(values) == list(of_pairs(["preference", "sft"]))


# Entropy and whether it was the most probable one, of each of the tokens above.
VALUES = {
    "entropy": torch.tensor([1.0, 2.0, 4.0, 0.5, 0.25, 0.0, 0.75]),
    "is_most_probable": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]),
}


def test_values_of_tokens_are_means_of_each_response() -> None:
    pairs = loss_inputs(LOGPS, REF, by_response(RESPONSE, 2), {"entropy": VALUES["entropy"]})
    assert {name: value.tolist() for name, value in pairs.chosen.token_means.items()} == {"entropy": [1.5, 0.5]}
    assert pairs.rejected.token_means["entropy"].tolist() == pytest.approx([4.0, 1.0 / 3])
    assert PAIRS.chosen.token_means == {}


def test_token_metrics_are_means_over_tokens_as_trl_has_them() -> None:
    """Not over pairs or responses: entropy (1 + 2 + 4 + 0.5 + 0.25 + 0.75) / 7; accuracy of the chosen tokens, 1 of 3."""
    pairs = loss_inputs(LOGPS, REF, by_response(RESPONSE, 2), VALUES)
    values = _means(Dpo(beta=0.5), pairs, token_metrics=True)
    assert values["entropy"] == pytest.approx(8.5 / 7)
    assert values["mean_token_accuracy"] == pytest.approx(1 / 3)
    assert {name: value for name, value in values.items() if name not in TOKEN_METRICS} == _means(Dpo(beta=0.5), PAIRS)
    assert list(values) == list(of_pairs(["preference", "sft"], token_metrics=True))
    alone = _means(Sft(), pairs, token_metrics=True)
    assert alone["entropy"] == pytest.approx(3.5 / 3)  # of the chosen tokens, which alone are learned
    assert alone["mean_token_accuracy"] == pytest.approx(1 / 3)
    names = metrics.summed_names(Dpo(beta=0.5), token_metrics=True)
    assert set(names) == metrics.sums(Dpo(beta=0.5).losses(pairs), pairs).keys()
    assert not {*TOKEN_METRICS} & {*metrics.summed_names(Dpo(beta=0.5))}


def test_token_metrics_do_not_depend_on_how_pairs_are_grouped() -> None:
    """A mean of the means of micro batches would be (7 / 3 + 1.5 / 4) / 2 for the entropy, and 1 / 4 for the accuracy."""
    objective, total = Dpo(beta=0.5), {}
    for pair, tokens in enumerate((slice(0, 3), slice(3, 7))):
        values = {name: value[tokens] for name, value in VALUES.items()}
        pairs = loss_inputs(LOGPS[tokens], REF[tokens], by_response(RESPONSE[tokens] - 2 * pair, 1), values)
        for name, value in metrics.sums(objective.losses(pairs), pairs).items():
            total[name] = total.get(name, 0.0) + value.item()
    means = metrics.means(total, objective, token_metrics=True)
    assert (means["entropy"], means["mean_token_accuracy"]) == pytest.approx((8.5 / 7, 1 / 3))


def test_terms_are_reported_without_their_weights() -> None:
    """2 * (0.31326169 + ln 2) / 2 + 0.1 * (3 + 4) / 2; the SFT term alone has no rewards, which read 0."""
    both = _means(weighted_sum((2.0, Dpo(beta=0.5)), (0.1, Sft())), PAIRS)
    assert both["loss"] == pytest.approx(LOSS + math.log(2) + 0.35, abs=1e-6)
    assert both["preference_loss"] == pytest.approx((LOSS + math.log(2)) / 2, abs=1e-6)
    assert both["sft_loss"] == 3.5
    alone = _means(weighted_sum((0.0, Dpo(beta=0.5)), (2.0, Sft())), PAIRS)
    assert (alone["loss"], alone["sft_loss"]) == (7.0, 3.5)
    assert [name for name, value in alone.items() if value == 0] == [
        "preference_loss", "accuracy", "rewards_chosen_mean", "rewards_rejected_mean",
    ]  # fmt: skip


def test_a_sum_needs_what_its_parts_need() -> None:
    dpo, sft = Dpo(beta=0.5), Sft()
    for parts, needs, terms in (
        (((1.0, dpo), (0.0, sft)), Needs(reference=True), {"preference"}),
        (((0.0, dpo), (1.0, sft)), Needs(rejected=False), {"sft"}),
        (((1.0, sft), (1.0, dpo)), Needs(reference=True), {"preference", "sft"}),
    ):
        whole = weighted_sum(*parts)
        assert (whole.needs, set(whole.terms)) == (needs, terms)
        rewards = whole.losses(PAIRS).rewards
        assert (rewards is not None) == needs.rejected
    values = Needs(token_values=frozenset({"entropy"}), row_rewards=True) | Needs(rejected=False, whole_batch=True, state=True)
    assert values == Needs(False, True, frozenset({"entropy"}), True, True, True)
    for parts in ([(0.0, dpo)], [(1.0, dpo), (1.0, Dpo(beta=0.1))]):
        with pytest.raises(AssertionError):
            weighted_sum(*parts)


def test_metrics_do_not_depend_on_how_pairs_are_grouped() -> None:
    objective = Dpo(beta=0.5)
    whole, parts = metrics.sums(objective.losses(PAIRS), PAIRS), []
    for first, last, tokens in ((0, 1, slice(0, 3)), (1, 2, slice(3, 7))):
        pairs = loss_inputs(LOGPS[tokens], REF[tokens], by_response(RESPONSE[tokens] - 2 * first, last - first))
        parts.append(metrics.sums(objective.losses(pairs), pairs))
    assert {name: value.item() for name, value in whole.items()} == {
        name: pytest.approx(sum(part[name].item() for part in parts)) for name in whole
    }


@pytest.mark.parametrize(
    ("average", "bound"),
    [
        (False, 2.0**-13),  # 2^10 roundings of 2^-24, times the root of 2 + 2 tokens
        (True, 2.0**-14),  # of means of 2 tokens: the root of 1/2 + 1/2
    ],
)
def test_a_margin_within_rounding_is_no_preference(average: bool, bound: float) -> None:
    assert ROUNDINGS == 2.0**10
    tokens = torch.tensor([2.0, 2.0, 2.0])
    margins = torch.tensor([0.99, 1.01, -1.01]) * bound * (2 if average else 1)
    pairs = LossInputs(Responses(-tokens, tokens, margins), Responses(-tokens, tokens, torch.zeros(3)))
    assert _means(Dpo(beta=0.5, average=average), pairs)["accuracy"] == pytest.approx(1 / 3)


def test_names_that_checkpoints_are_ranked_by() -> None:
    names = selectors(["a", "b_loss"], ["preference", "offset"])
    assert {"train:lr", "train:offset_loss", "val:validation-b_loss_accuracy", "val:validation-a_sft_loss"} <= set(names)
    assert not {"val:validation-a_lr", "train:num_pairs"} & set(names)
    wrong = {(name, higher) for name in names for higher in (True, False) if keeps_the_worst(name, higher_is_better=higher)}
    assert wrong == {(name, True) for name in names if name.endswith("loss")} | {
        (name, False) for name in names if name.endswith(("accuracy", "rewards_margin_mean"))
    }

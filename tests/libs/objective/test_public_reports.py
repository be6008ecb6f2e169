"""What users of other trainers found wrong with these losses, tried on ours."""

from __future__ import annotations

import math

import pytest
import torch

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.inputs import LossInputs, Responses
from nemotron_dpo.objective.losses.orpo import Orpo
from nemotron_dpo.objective.modified import modified
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.settings import SettingError
from nemotron_dpo.objective.weighted_sum import after


def _pair(chosen: float, rejected: float, *, tokens: float = 1.0, ratio: bool = True) -> tuple[LossInputs, torch.Tensor]:
    """A pair with these log-ratios, or log-probs, and the leaf that they come from."""
    leaf = torch.tensor([[chosen], [rejected]], dtype=torch.float32, requires_grad=True)
    count = torch.full((1,), tokens)
    return LossInputs(*(Responses(side, count, side if ratio else None) for side in leaf)), leaf  # type: ignore[arg-type] - two sides


def _loss_and_slope(objective: Objective, pairs: LossInputs, leaf: torch.Tensor) -> tuple[float, list[float]]:
    loss = objective.losses(pairs).loss.sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.item(), slope.flatten().tolist()


def test_the_loss_that_is_asked_for_is_trained() -> None:
    """modelscope/ms-swift#10167: hinge and ipo trained sigmoid. A margin of 6, beta 0.1, one token; the report's own numbers."""
    for name, loss, slope in (("sigmoid", 0.437488, -0.035434), ("hinge", 0.4, -0.1), ("ipo", 1.0, 2.0)):
        read, (by_chosen, _) = _loss_and_slope(registry.make(name, beta=0.1), *_pair(4.0, -2.0))
        assert (read, by_chosen) == (pytest.approx(loss, abs=1e-6), pytest.approx(slope, abs=1e-6))


def test_orpo_of_certain_responses() -> None:
    """huggingface/trl#2564, #3237 and hpcaitech/ColossalAI#6407: NaN where a probability is near 1; a bias of 1.0001.

    log odds of 1 - x are log(1/x) but for x itself. A probability of 1 counts as the float32 below it.
    """
    orpo = Orpo(orpo_lambda=1.0)
    for logp, odds in (
        (-1e-3, -math.log(math.expm1(1e-3))),
        (-1e-6, math.log(1e6)),
        (0.0, 24 * math.log(2)),
        (1e-6, 24 * math.log(2)),
    ):
        pairs, leaf = _pair(-1.0, logp, ratio=False)
        loss, slopes = _loss_and_slope(orpo, pairs, leaf)
        margin = -math.log(math.expm1(1)) - odds
        assert loss == pytest.approx(1 + math.log1p(math.exp(-margin)), rel=1e-5)
        assert all(map(math.isfinite, slopes))


def test_dpops_penalty_is_inside_the_sigmoid_and_of_a_falling_chosen_response() -> None:
    """abacusai/smaug#2: a public implementation has it outside, and the wrong way round. -log sigmoid(0.1 (1 - 5 * 0.5))."""
    objective = registry.make("dpop", beta=0.1, dpop_lambda=5.0)
    loss, (by_chosen, by_rejected) = _loss_and_slope(objective, *_pair(-0.5, -1.5))
    assert loss == pytest.approx(math.log1p(math.exp(0.15)))
    sigmoid = 1 / (1 + math.exp(-0.15))
    assert (by_chosen, by_rejected) == (pytest.approx(-0.1 * 6 * sigmoid), pytest.approx(0.1 * sigmoid))
    rising, _ = _loss_and_slope(objective, *_pair(0.5, -0.5))
    assert rising == pytest.approx(math.log1p(math.exp(-0.1)))


def test_a_divergence_is_of_both_terms_or_of_none() -> None:
    """huggingface/trl#6441: apo_down took it for one of its two terms. Ours refuses it by name."""
    apo = registry.find("apo_down")
    with pytest.raises(SettingError, match=r"^f_divergence has no meaning with apo_down: it goes with"):
        modified([(apo, registry.make("apo_down", beta=0.1))], f_divergence="js_divergence")


def test_ipo_averages_and_can_sum() -> None:
    """huggingface/trl#1677 and meta-pytorch/torchtune#1291: which of the two is meant. Over 4 tokens: (6/4 - 5)^2, (6 - 5)^2."""
    for settings, loss in (({}, 12.25), ({"average": True}, 12.25), ({"average": False}, 1.0)):
        read, _ = _loss_and_slope(registry.make("ipo", beta=0.1, **settings), *_pair(4.0, -2.0, tokens=4.0))
        assert read == pytest.approx(loss)


def test_simpo_averages_and_gamma_is_not_times_beta_again() -> None:
    """hiyouga/LLaMA-Factory#7301 and princeton-nlp/SimPO#32, #7: where the length is divided by. 2 (-1/4 + 3/4) - 0.5 = 0.5."""
    read, _ = _loss_and_slope(registry.make("simpo", beta=2.0), *_pair(-1.0, -3.0, tokens=4.0, ratio=False))
    assert read == pytest.approx(math.log1p(math.exp(-0.5)))


def test_label_smoothing_that_means_nothing_is_an_error() -> None:
    """huggingface/trl#1035: it was asked for to be warned of, where it has no effect."""
    for name in ("ipo", "hinge", "nca_pair", "sft"):
        with pytest.raises(SettingError, match=rf"^label_smoothing means nothing to {name}, whose settings are "):
            registry.make(name, label_smoothing=0.1)


def test_wpo_weighs_by_means_over_tokens() -> None:
    """allenai/open-instruct#1144: sums made every weight 0. 2000 tokens of -1, whose sum of squares is e^-1.5: e^0.5 each."""
    (objective,) = modified([(registry.find("dpo"), registry.make("dpo", beta=0.1))], wpo_weighting=True)
    count, zero = torch.tensor([2000.0]), torch.zeros(1)
    side = Responses(-count, count, zero, token_means={"log_sum_squares": zero - 1.5})
    assert objective.losses(LossInputs(side, side)).loss.item() == pytest.approx(math.e * math.log(2))


def test_a_validation_does_not_move_the_running_mean() -> None:
    """TRL updates bco's in training only. Here an objective never changes: `after` gives another one."""
    bco = registry.make("bco", beta=0.5)
    pairs, _ = _pair(2.0, 1.0)
    first = bco.losses(pairs).loss.item()
    moved = after(bco, pairs)
    assert bco.losses(pairs).loss.item() == first
    # The mean is 0.75: 1 - 0.75 and 0.75 - 0.5.
    assert moved.losses(pairs).loss.item() == pytest.approx(2 * math.log1p(math.exp(-0.25)))

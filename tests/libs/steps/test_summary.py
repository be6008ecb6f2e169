"""The closing report, from rows whose figures are easy to check by eye."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dpo.outcome import outcome, read_metrics, sentence
from nemotron_dpo.steps.summary import summarize

ROWS = """\
{"step": 0, "validation-default/loss": 0.6931, "validation-default/accuracy": 0.0}
{"step": 1, "train/loss": 0.6931, "train/accuracy": 0.0, "train/rewards_chosen_mean": 0.0, "train/rewards_rejected_mean": 0.0,\
 "timing/train/pairs_per_sec": 1.0, "timing/train/valid_tokens_per_sec": 100.0}
{"step": 2, "train/loss": 0.5, "train/accuracy": 0.75, "train/rewards_chosen_mean": 0.5, "train/rewards_rejected_mean": -1.0,\
 "timing/train/pairs_per_sec": 10.0, "timing/train/valid_tokens_per_sec": 1000.0}
{"step": 2, "validation-default/loss": 0.2, "validation-default/accuracy": 0.9375}
{"step": 3, "train/loss": 0.25, "train/accuracy": 1.0, "train/rewards_chosen_mean": 1.0, "train/rewards_rejected_mean": -2.0,\
 "timing/train/pairs_per_sec": 20.0, "timing/train/valid_tokens_per_sec": 1100.0}
{"step": 3, "validation-default/loss": 0.201, "validation-default/accuracy": 0.875}
{"step": 3, "validation-hard/loss": 0.5, "validation-hard/acc
"""

REPORT = """\
               first   last
loss           0.6931  0.2500
accuracy       0.0000  1.0000
reward margin  0.0000  3.0000

                     first   best (step 2)  last
validation loss      0.6931  0.2000         0.2010
validation accuracy  0.0000  0.9375         0.8750

The policy now prefers the chosen response in 88% of the pairs of validation.

steps       3
pairs/s     15.0
tokens/s    1050.0
checkpoint  out/checkpoint_megatron

next
  ckpt-export out/checkpoint_megatron"""


def test_report(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(ROWS)
    places = {"checkpoint": Path("out/checkpoint_megatron")}
    assert summarize(outcome(read_metrics(path)), places, ["ckpt-export out/checkpoint_megatron"]) == REPORT


def test_the_pairs_of_a_mixture_by_their_source():
    shown = summarize(outcome([]), {}, sources={"a.jsonl": 40, "HelpSteer3": 6})
    assert shown.endswith("pairs of  a.jsonl 40\npairs of  HelpSteer3 6")


def test_no_metrics(tmp_path: Path):
    shown = summarize(outcome(read_metrics(tmp_path / "none.jsonl")), {"checkpoint": None})
    assert shown.splitlines()[0] == "Nothing was trained."
    assert shown.splitlines()[-1] == "checkpoint  none"


def test_a_margin_below_the_noise_floor_is_marked():
    """The floor of a difference of two means is sqrt(2) of each one's: 0.1414."""
    known = {"step": 1, "train/loss": 0.7, "train/rewards_rejected_mean": 0.0, "train/reward_noise_floor": 0.1}
    rows = [{**known, "train/rewards_chosen_mean": chosen} for chosen in (-0.142, 0.141)]
    shown = summarize(outcome(rows), {})
    assert "reward margin  -0.1420  ~0.1410" in shown
    assert "\n\n~ is noise: what rounding alone may make of it\n\nNo preference was learned" in shown


def test_means_over_a_tenth_of_the_steps_and_terms_apart():
    """20 steps whose losses are 1 to 20: the first two have the mean 1.5, the last two 19.5."""
    rows = [
        {"step": n, "train/loss": float(n), "train/preference_loss": n / 2, "train/sft_loss": n / 4, "train/accuracy": 0.0}
        for n in range(1, 21)
    ]
    assert summarize(outcome(rows), {}).splitlines()[:5] == [
        "                 first 2 steps  last 2 steps",
        "loss             1.5000         19.5000",
        "preference loss  0.7500         9.7500",
        "sft loss         0.3750         4.8750",
        "accuracy         0.0000         0.0000",
    ]


def test_what_was_learned_in_a_sentence():
    step: dict[str, Any] = {"step": 5, "train/loss": 0.5, "train/accuracy": 0.6}
    unseen = [{"step": n, "validation-default/loss": loss} for n, loss in ((0, 0.7), (4, 0.5), (8, 0.6))]
    assert sentence(outcome([])) == "nothing was trained"
    assert sentence(outcome([step])) == "the policy now prefers the chosen response in 60% of the pairs of the last step"
    assert sentence(outcome([step, *unseen])).startswith("validation was best after step 4 and got worse")
    unlucky = [{**step, "train/accuracy": 0.0}, {"step": 5, "validation-default/loss": 0.5, "validation-default/accuracy": 1.0}]
    assert sentence(outcome(unlucky)) == "the policy now prefers the chosen response in 100% of the pairs of validation"
    known = {"train/rewards_chosen_mean": 0.0, "train/rewards_rejected_mean": 0.0, "train/reward_noise_floor": 1e-6}
    only = [{**step, "step": 1, "train/accuracy": 0.0, **known}]
    assert sentence(outcome(only)).startswith("what its only step did was not measured")
    after = {name.replace("train", "validation-default"): value for name, value in known.items()}
    after |= {"step": 1, "validation-default/loss": 0.5, "validation-default/accuracy": 1.0}
    assert sentence(outcome([*only, after])).startswith("no preference was learned")
    assert not outcome([*only, {**after, "validation-default/rewards_chosen_mean": 1.0}]).learned_nothing
    fine_tuning = [{"step": n, "train/loss": loss} for n, loss in ((1, 2.0), (2, 1.5))]
    assert sentence(outcome(fine_tuning)) == "the loss went from 2.0000 to 1.5000"

"""The closing table, from rows whose figures are easy to check by eye."""

from __future__ import annotations

from pathlib import Path

from nemotron_dpo.steps.summary import read_metrics, summarize

ROWS = """\
{"step": 0, "validation-default/loss": 0.6931, "validation-default/accuracy": 0.0}
{"step": 1, "train/loss": 0.6931, "train/accuracy": 0.0, "train/rewards_chosen_mean": 0.0, "train/rewards_rejected_mean": 0.0,\
 "timing/train/pairs_per_sec": 1.0}
{"step": 2, "train/loss": 0.5, "train/accuracy": 0.75, "train/rewards_chosen_mean": 0.5, "train/rewards_rejected_mean": -1.0,\
 "timing/train/pairs_per_sec": 10.0}
{"step": 3, "train/loss": 0.25, "train/accuracy": 1.0, "train/rewards_chosen_mean": 1.0, "train/rewards_rejected_mean": -2.0,\
 "timing/train/pairs_per_sec": 20.0}
{"step": 3, "validation-default/loss": 0.25, "validation-default/accuracy": 0.875}
{"step": 3, "validation-hard/loss": 0.5, "validation-hard/acc
"""

TABLE = """\
                     first   last
loss                 0.6931  0.2500
accuracy             0.0000  1.0000
reward margin        0.0000  3.0000
validation loss      0.6931  0.2500
validation accuracy  0.0000  0.8750

steps       3
pairs/s     15.0
checkpoint  out/checkpoint_megatron"""


def test_table(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(ROWS)
    assert summarize(read_metrics(path), Path("out/checkpoint_megatron")) == TABLE


def test_no_metrics(tmp_path: Path):
    table = summarize(read_metrics(tmp_path / "none.jsonl"), None)
    assert table.splitlines()[-1] == "checkpoint  none"


def test_a_margin_below_the_noise_floor_is_marked():
    """The floor of a difference of two means is sqrt(2) of each one's: 0.1414."""
    known = {"train/loss": 0.7, "train/rewards_rejected_mean": 0.0, "train/reward_noise_floor": 0.1}
    rows = [{**known, "train/rewards_chosen_mean": chosen} for chosen in (0.141, -0.142)]
    shown = summarize(rows, None)
    assert "reward margin  ~0.1410  -0.1420" in shown
    assert "\n\n~ is noise: what rounding alone may make of it\n\nsteps" in shown

"""What records say in a line."""

from __future__ import annotations

from nemotron_dpo.outcome import outcome
from nemotron_dpo.training.narration import ending, step_facts, validation_line
from nemotron_dpo.training.record import Record

QUALITY = {"loss": 0.5, "preference_loss": 0.4, "sft_loss": 0.1, "accuracy": 0.75}
REWARDS = {"rewards_chosen_mean": 1.0, "rewards_rejected_mean": -0.5}
TIMES = {"timing/train/valid_tokens_per_sec": 812.4, "memory/train/max_resident_bytes": 3.1e9}


def _record(split: str, step: int, values: dict[str, float]) -> Record:
    return Record(step, split, {f"{split}/{name}": value for name, value in values.items()})


def test_a_step() -> None:
    record = _record("train", 3, {**QUALITY, **REWARDS, "lr": 5e-7})
    shown = "loss 0.5000, preference 0.4000, sft 0.1000, accuracy 0.750, margin 1.5, lr 5e-07"
    assert step_facts(record) == shown
    assert step_facts(Record(3, "train", {**record.values, **TIMES})) == f"{shown}, 812 tokens/s, 3.1 GB"


def test_fine_tuning_has_one_term_and_no_rewards() -> None:
    values = {"loss": 2.0, "preference_loss": 0.0, "sft_loss": 2.0, "accuracy": 0.0, "lr": 0.001}
    none = {"rewards_chosen_mean": 0.0, "rewards_rejected_mean": 0.0}
    assert step_facts(_record("train", 1, {**values, **none})) == "loss 2.0000, lr 0.001"


def test_a_validation() -> None:
    """A margin of 1.5 is noise where a mean reward is known to 1.1: sqrt(2) times that is 1.56."""
    values = {"loss": 0.5, "accuracy": 0.75, **REWARDS, "num_valid_samples": 64.0}
    shown = "after step 8: loss 0.5000, accuracy 0.750, margin 1.5, 64 pairs"
    assert validation_line(_record("validation-default", 8, values)) == f"validation {shown}"
    assert validation_line(_record("validation-hard", 8, values)) == f"validation hard {shown}"
    noisy = {**values, "reward_noise_floor": 1.1, "num_valid_samples": 1.0}
    assert validation_line(_record("validation-default", 8, noisy)).endswith("margin ~1.5, 1 pair")


def test_the_ending() -> None:
    rows = [
        {"step": 0, "validation-default/loss": 0.7},
        {"step": 1, "train/loss": 0.7, "train/accuracy": 0.0, "timing/train/pairs_per_sec": 8.0},
        {"step": 2, "train/loss": 0.5, "train/accuracy": 0.75, "timing/train/pairs_per_sec": 16.0},
        {"step": 2, "validation-default/loss": 0.4, "validation-default/accuracy": 0.5},
    ]
    assert ending(outcome(rows)) == [
        "2 steps, loss 0.7000 -> 0.5000, accuracy 0.0000 -> 0.7500, 16.00 pairs/s",
        "validation was best after step 2: loss 0.4000",
        "the policy now prefers the chosen response in 50% of the pairs of validation",
    ]
    assert ending(outcome([{"step": step, "train/loss": 1.0} for step in range(1, 31)]))[0] == (
        "30 steps, loss 1.0000 -> 1.0000 (means of the first and the last 3 steps)"
    )
    assert ending(outcome([])) == ["nothing was trained"]


def test_the_ending_where_losses_of_a_validation_are_not_finite() -> None:
    """metrics.jsonl has null there."""
    train = [{"step": step, "train/loss": 0.7} for step in (1, 2)]
    table = {
        (None, None): "validation never had a finite loss",
        (None, 0.4): "validation was best after step 2: loss 0.4000",
        (0.7, None): "validation was best after step 0: loss 0.7000",
    }
    for (before, after), line in table.items():
        rows = [{"step": 0, "validation-default/loss": before}, *train, {"step": 2, "validation-default/loss": after}]
        assert ending(outcome(rows))[1] == line

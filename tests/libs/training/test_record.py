"""What training_info.json says of a step."""

from __future__ import annotations

from nemotron_dpo.training.record import Record, TrainingInfo

LOSS = "val:validation-default_loss"


def _step(step: int, loss: float) -> Record:
    values = {"train/loss": loss, "train/preference_loss": loss, "train/accuracy": 1.0, "train/global_valid_toks": 5.0}
    return Record(step, "train", {**values, "timing/train/total_step_time": 0.5})


def _validation(step: int, loss: float) -> Record:
    return Record(step, "validation-default", {"validation-default/loss": loss})


def test_a_checkpoint_is_not_judged_by_the_validation_of_another_step():
    """As in NeMo-RL, where such a checkpoint lacks the metric and so counts as worst."""
    info = TrainingInfo(batches_per_epoch=2, batch_size=4)
    info.add(_validation(0, 0.7))
    info.add(_step(1, 0.6))
    assert LOSS not in info.at(1)
    info.add(_step(2, 0.5))
    info.add(_validation(2, 0.4))
    assert (info.at(2)[LOSS], info.at(2)["train:loss"]) == (0.4, 0.5)
    info.add(_step(3, 0.3))
    assert LOSS not in info.at(3)
    assert {name: info.at(3)[name] for name in ("epoch", "step", "total_steps", "consumed_samples", "total_valid_tokens")} == {
        "epoch": 1, "step": 1, "total_steps": 3, "consumed_samples": 12, "total_valid_tokens": 15.0,
    }  # fmt: skip

"""One run from its first step, or the one it is resumed at, to its end: the loop, its records and its checkpoints together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training import loop
from nemotron_dpo.training.record import MetricsFile, Record, Totals, TrainingInfo
from nemotron_dpo.training.resume import ResumeState
from nemotron_dpo.training.saving import Checkpoints
from nemotron_dpo.training.stopping import Stop


def train(
    policy: TrainablePolicy,
    shape: Architecture,
    data: Pairs,
    validation: Mapping[str, Pairs],
    settings: loop.Settings,
    *,
    metrics_file: Path | None,
    checkpoints: Checkpoints | None,
    resumed: ResumeState | None,
    stop: Stop,
    say: Callable[[str], None],
    count: Callable[[int], object],
) -> None:
    """Train `policy`, saying what is saved and how it went; every rank calls it, and one has a `metrics_file`.

    `policy` must already be what `resumed` says. Raises UserError from the loop's guards and from saving.
    """
    done = resumed.step if resumed else 0
    info = TrainingInfo(len(data) // settings.batch_size, settings.batch_size, resumed.totals if resumed else Totals())
    with MetricsFile(metrics_file, done=done, say=say) as metrics:

        def save(step: int) -> None:
            if checkpoints is not None:
                metrics.sync()
                saved, removed = checkpoints.save(step, policy, shape, info)
                say(f"saved {saved}")
                for old in removed:
                    say(f"removed {old}: not among the {checkpoints.kept}")

        known = info.totals.reward_noise
        for record in loop.train(policy, data, validation, settings, save, stop=stop, done=done, reward_noise=known):
            if "train/reward_noise" in record:
                say(_noise_floor(record, policy))
            metrics.write(record)
            info.add(record)
            count(int("train/loss" in record))
    say(info.summary())
    if stop.reason is not None:
        can_resume = checkpoints is not None and checkpoints.identity is not None
        outlook = "the same command resumes it" if can_resume else "without checkpointing.save_optimizer it cannot be resumed"
        say(f"ended after step {info.totals.steps} of {len(settings.learning_rates)} by {stop.reason}: {outlook}")


def _noise_floor(record: Record, policy: TrainablePolicy) -> str:
    dtype = str(policy.model.config.params_dtype).removeprefix("torch.")
    return (
        f"noise floor: a response's reward is known to {record['train/reward_noise']:.2g} nats in {dtype} (rms): "
        f"a mean over {record['train/num_valid_samples']:.0f} pairs below {record['train/reward_noise_floor']:.2g} is noise"
    )

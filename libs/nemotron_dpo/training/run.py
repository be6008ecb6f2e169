"""One run from its first step, or the one it is resumed at, to its end: the loop, its records and its checkpoints together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from nemotron_dpo.outcome import outcome, read_metrics
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.progress import Progress
from nemotron_dpo.training import loop, narration, sinks
from nemotron_dpo.training.carried import Carried, goes_on
from nemotron_dpo.training.guards.guarded import Guarded
from nemotron_dpo.training.guards.watch import Watch
from nemotron_dpo.training.proof import prove
from nemotron_dpo.training.record import SAVING, Record, Totals, TrainingInfo
from nemotron_dpo.training.resume import ResumeState
from nemotron_dpo.training.samples import Samples
from nemotron_dpo.training.saving import Checkpoints
from nemotron_dpo.training.settings import LoopSettings
from nemotron_dpo.training.sinks.jsonl import NAME as METRICS
from nemotron_dpo.training.sinks.run_file import signal_of
from nemotron_dpo.training.stopping import Stop


def train(
    policy: TrainablePolicy,
    data: Pairs,
    validation: Mapping[str, Pairs],
    settings: LoopSettings,
    *,
    recorded: sinks.RecordedRun | None,
    checkpoints: Checkpoints | None,
    resumed: ResumeState | None,
    stop: Stop,
    say: Callable[[str], None],
    progress: Progress,
    watch: Watch | None = None,
    samples: Samples | None = None,
) -> None:
    """Train `policy`, saying what is saved and how it went; every rank calls it, and the first says what is `recorded`.

    `policy` must already be what `resumed` says. `progress` counts steps. `watch` sees the records of steps and validations,
    and may end the run. `samples` of each validation are shown. Raises UserError from the loop's guards and from saving.
    """
    size = settings.batches.size
    info = TrainingInfo(len(data) // size, size, resumed.totals if resumed else Totals())
    done, carried = 0, Carried(settings.objective)
    if resumed:
        done, carried = resumed.step, goes_on(settings.objective, info.totals, resumed.folder)
    guarded = Guarded(watch, info.totals, stop, say)
    if recorded is not None:
        recorded = replace(recorded, alarms=guarded.alarms)
    if resumed is None:
        prove(policy, data, settings, say)
    with sinks.opened(recorded) as recording:
        save = functools.partial(_save, recording, checkpoints, policy, info, guarded, say)
        records = loop.records(
            policy, data, validation, settings, save, stop=stop, enter=progress.phase, carried=carried, done=done
        )
        try:
            _take(records, info, recording, guarded, functools.partial(_show, progress, samples, policy, say))
        except BaseException as error:
            if (signal := signal_of(error)) and not _can_resume(checkpoints):  # else it is noted, and a second ends at once
                say(_ending(info.totals.steps, settings.num_steps, signal, checkpoints))
            raise
        progress.phase("")
    for line in _ending_lines(recorded, guarded, stop, info.totals.steps, settings.num_steps, checkpoints):
        say(line)


def _ending_lines(
    recorded: sinks.RecordedRun | None, guarded: Guarded, stop: Stop, step: int, last: int, checkpoints: Checkpoints | None
) -> Iterator[str]:
    """How the run went, from what is recorded, and why it ended before its last step."""
    if recorded is not None:
        yield from narration.ending(outcome(read_metrics(recorded.folder / METRICS)))
        yield from guarded.summary()
    if stop.has_diverged:
        yield guarded.ending(last, checkpoints)
    elif stop.reason is not None:
        yield _ending(step, last, stop.reason, checkpoints)


def _take(
    records: Iterable[Record], info: TrainingInfo, recording: sinks.Sinks, guarded: Guarded, show: Callable[[Record], None]
) -> None:
    """Give every record to who waits for it."""
    for record in records:
        record = info.add(record)
        recording.write(record)
        if record.split != SAVING:  # which says nothing of the policy
            show(record)
            guarded.take(record)


def _show(
    progress: Progress, samples: Samples | None, policy: TrainablePolicy, say: Callable[[str], None], record: Record
) -> None:
    if record.reward_noise is not None:
        say(_noise_floor(record, policy))
    if record.is_training:
        progress.advance(1, narration.step_facts(record))
    else:
        say(narration.validation_line(record))
        for text in samples.of(record) if samples else ():
            say(text)


def _save(
    recording: sinks.Sinks,
    checkpoints: Checkpoints | None,
    policy: TrainablePolicy,
    info: TrainingInfo,
    guarded: Guarded,
    say: Callable[[str], None],
    step: int,
) -> bool:
    """Save `step` where anything is saved, once what was recorded up to it cannot be lost; whether it was."""
    if checkpoints is None:
        return False
    recording.sync()
    saved, removed = checkpoints.save(step, policy, info, guarded.needed)
    say(f"saved {saved}")
    for old, why in removed.items():
        say(f"removed {old}: {why}")
    return True


def _noise_floor(record: Record, policy: TrainablePolicy) -> str:
    dtype, values = str(policy.model.config.params_dtype).removeprefix("torch."), record.values
    return (
        f"noise floor: a response's reward is known to {values['train/reward_noise']:.2g} nats in {dtype} (rms): "
        f"a mean over {values['train/num_valid_samples']:.0f} pairs below {values['train/reward_noise_floor']:.2g} is noise"
    )


def _ending(step: int, last: int, reason: str, checkpoints: Checkpoints | None) -> str:
    outlook = "without checkpointing.save_optimizer it cannot be resumed"
    if _can_resume(checkpoints):
        outlook = "the same command resumes it"
    return f"ended after step {step} of {last} by {reason}: {outlook}"


def _can_resume(checkpoints: Checkpoints | None) -> bool:
    return checkpoints is not None and checkpoints.can_resume

"""The loop: a step, its record, a validation and a checkpoint where they are due. Every number it yields is global.

What becomes of the records is the caller's affair: training.run hands them to the sinks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping

from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.training.carried import Carried
from nemotron_dpo.training.record import SAVING, TRAIN, Record
from nemotron_dpo.training.settings import LoopSettings
from nemotron_dpo.training.step import train_step
from nemotron_dpo.training.stopping import Stop
from nemotron_dpo.training.timer import Timer
from nemotron_dpo.training.validation import validate


def records(
    policy: TrainablePolicy,
    data: Pairs,
    validation: Mapping[str, Pairs],
    settings: LoopSettings,
    save: Callable[[int], bool],
    *,
    stop: Stop,
    carried: Carried,
    enter: Callable[[str], object] = lambda what: None,
    done: int = 0,
) -> Iterator[Record]:
    """Train to the last step, or until `stop`, yielding a record a step, a validation and a checkpoint. Without any step all
    sets are validated.

    Where whoever takes a record gives `stop` up, nothing more is done: neither a validation nor a checkpoint follows.

    The first `done` steps were taken by the run that is resumed, and left `carried`. `save` is called with the step where a
    checkpoint is due, after all records of that step were taken, and says whether it left one. Where the noise of rewards is
    not known, the first step measures it and has it in its record; all records after it have the floor of their mean rewards.
    `enter` hears what comes next: "validating", "saving", "" for the next step.
    """
    last = settings.num_steps
    validated = functools.partial(_validated, policy, validation, settings, enter)
    if done == 0:
        yield from validated(0, carried)
    for step in range(done + 1, last + 1):
        started = time.monotonic()
        enter("")
        record, carried = train_step(policy, data, settings, step, carried)
        yield record
        if stop.has_diverged:
            return
        ends_early = step < last and stop.due(time.monotonic() - started)
        yield from validated(step, carried)
        if stop.has_diverged:
            return
        if ends_early or settings.saves(step):
            enter("saving")
            yield from _saved(save, step)
        if ends_early:
            return


def _validated(
    policy: TrainablePolicy,
    sets: Mapping[str, Pairs],
    settings: LoopSettings,
    enter: Callable[[str], object],
    step: int,
    carried: Carried,
) -> Iterator[Record]:
    due = settings.validated(sets, step)
    if due:
        enter("validating")
        yield from validate(policy, {name: sets[name] for name in due}, settings, step, carried)


def _saved(save: Callable[[int], bool], step: int) -> Iterator[Record]:
    timer = Timer()
    with timer.time("checkpointing"):
        is_saved = save(step)
    if is_saved:
        yield Record(step, SAVING, {f"timing/{TRAIN}/{name}": seconds for name, seconds in timer.seconds.items()})

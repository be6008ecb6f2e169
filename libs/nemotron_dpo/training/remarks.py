"""Remarks, one line each, on settings that come to something else on the given data than they seem to say.

config.checks makes those that need no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nemotron_dpo.training.settings import LoopSettings
from nemotron_dpo.wording import counted


def on_schedule(rates: Sequence[float], max_steps: int, warmup_steps: int, milestones: Sequence[int]) -> Iterator[str]:
    """Remarks on the learning rate of every step, in a run that was given at most `max_steps`."""
    steps = len(rates)
    all_steps = counted(steps, "step")
    if steps <= warmup_steps < max_steps:
        yield f"policy.scheduler.warmup_steps is {warmup_steps}, and the data give {all_steps}: all of it is warm-up"
    idle = [step for step, rate in enumerate(rates, 1) if rate == 0]
    if idle:
        yield f"policy.scheduler: the rate is 0 in {len(idle)} of {all_steps}, where nothing changes ({_listed(idle)})"
    late = [] if not steps else [milestone for milestone in milestones if milestone >= steps]
    if late:
        yield f"policy.scheduler: the run ends after {all_steps}, before milestone {_listed(late)}"


def on_batches(settings: LoopSettings, num_pairs: int) -> Iterator[str]:
    """Remarks on pairs that an epoch leaves out."""
    batches = settings.batches
    left = num_pairs % batches.size
    if left and settings.num_steps and settings.num_steps >= num_pairs // batches.size:
        which = "others each time" if batches.shuffle else "always the last ones"
        yield f"{left} of {num_pairs} pairs fill no batch of {batches.size} and are left out of an epoch, {which}"


def on_validation(settings: LoopSettings, sets: Mapping[str, int], *, is_asked: bool) -> Iterator[str]:
    """Remarks on validation sets, given by their numbers of pairs. `is_asked`: the user set how many pairs to evaluate."""
    steps, never = settings.num_steps, dict[str, int]()
    for name, num_pairs in sets.items():
        validation = settings.validation_of(name)
        asked = validation.batches * validation.batch_size
        if (is_asked or name in settings.val_sets) and asked > num_pairs:
            product = f"dpo.val_batches x dpo.val_global_batch_size is {asked}"
            yield f"validation set {name} has {counted(num_pairs, 'pair')}, and {product}: all of them are taken"
        if not validation.at_end and validation.period > steps > 0:
            never[name] = validation.period
    if len(never) == len(sets) and len(set(never.values())) == 1:
        yield f"dpo.val_period is {settings.validation.period}, and the run has {counted(steps, 'step')}: none is validated"
    else:
        for name, period in never.items():
            yield f"val_period of {name} is {period}, and the run has {counted(steps, 'step')}: none is validated by it"


def on_overlap(shared: Mapping[str, int], sets: Mapping[str, int]) -> Iterator[str]:
    """Remarks on validation sets, given by their numbers of pairs, of which `shared` are trained on as well."""
    for name, count in shared.items():
        if count:
            some = f"{count} of the {counted(sets[name], 'pair')} of validation set {name}"
            yield f"{some} are trained on as well: what it measures of them is no test"


def on_retention(
    settings: LoopSettings, keep_top_k: int | None, metric_name: str | None, ranked_by: str | None
) -> Iterator[str]:
    """Remarks on checkpoints that are removed by age, because the metric that would rank them is not measured."""
    saves = -(-settings.num_steps // settings.save_period)  # the last step has one in any case
    if metric_name is not None and ranked_by is None and keep_top_k is not None and saves > keep_top_k:
        yield f"nothing measures {metric_name}, for want of validation: of {saves} checkpoints the newest {keep_top_k} are kept"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")

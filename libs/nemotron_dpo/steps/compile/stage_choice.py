"""Choose which stages of a plan run: those that --from, --to and --force ask for, and those that are not up to date."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import stage_cache
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.stage_cache import CacheEntry
from nemotron_dpo.steps.compile.stage_keys import stage_key
from nemotron_dpo.steps.compile.stages import Plan, Stage


@dataclass(frozen=True)
class StageChoice:
    """A stage up to --to. If `is_forced`, it runs even if it is up to date. If `is_given`, it must be up to date."""

    stage: Stage
    is_forced: bool = False
    is_given: bool = False


@dataclass(frozen=True)
class StageDecision:
    """What happens to a stage: its outputs are taken from the cache `entry`; if that is None, the stage runs.

    If `is_forced`, it runs from its start, and does not resume. `key` names its outputs in the cache; None if they have no key.
    """

    stage: Stage
    key: str | None
    entry: CacheEntry | None
    is_forced: bool


def choose(plan: Plan, first: str | None, last: str | None, *, force: bool) -> list[StageChoice]:
    """The stages up to `last`. The stages from `first` on are forced to run; those before `first` are not run.

    `first` and `last` are names of stages, or of programs. `force` forces every stage. Raises UserError for a name that no
    stage has, and where `first` comes after `last`.
    """
    start = _matches(plan.stages, first, "--from")[0] if first is not None else None
    end = _matches(plan.stages, last, "--to")[-1] if last is not None else len(plan.stages) - 1
    if start is not None and start > end:
        raise UserError(f"--from {first} comes after --to {last}", usage=True)
    choices = []
    for n, stage in enumerate(plan.stages[: end + 1]):
        later = start is not None and n >= start
        choices.append(StageChoice(stage, is_forced=force or later, is_given=start is not None and n < start))
    return choices


def decide(plan: Plan, choices: Sequence[StageChoice], digests: Digests, env: Mapping[str, str]) -> Iterator[StageDecision]:
    """Yield the decision for each stage in order. `env` is added to the environment of the stages.

    The caller carries out each decision before it takes the next one, which may depend on the outputs. Raises UserError for a
    stage that must be up to date and is not.
    """
    made: dict[str, str] = {}
    for choice in choices:
        stage = choice.stage
        if choice.is_given and not stage.outputs:
            continue
        key = stage_key(plan, stage, made, digests, env)
        entry = None
        if key is not None and not stage.may_stop_early:
            # What is made of one output must not pass for what is made of another one of the same stage.
            made.update({str(output): f"{key} {n}" if n else key for n, output in enumerate(stage.outputs)})
            if choice.is_given or not choice.is_forced:
                entry = stage_cache.find(key, stage.outputs)
        if choice.is_given and entry is None:
            raise UserError(
                f"{stage.name}: what it makes is not there", remedy=f"run without --from, or --from {stage.program}"
            )
        yield StageDecision(stage, key, entry, choice.is_forced)


def check_given(plan: Plan, choices: Sequence[StageChoice], digests: Digests, env: Mapping[str, str]) -> None:
    """Raise UserError where one of the stages that must be up to date is not."""
    for _ in decide(plan, [choice for choice in choices if choice.is_given], digests, env):
        pass


def _matches(stages: Sequence[Stage], name: str, option: str) -> list[int]:
    found = [n for n, stage in enumerate(stages) if name in (stage.name, stage.program)]
    if found:
        return found
    names = list(dict.fromkeys(known for stage in stages for known in (stage.program, stage.name)))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]}?" if close else f"the stages are {', '.join(stage.name for stage in stages)}"
    raise UserError("no such stage", source=f"{option} {name or '(empty)'}", remedy=remedy, usage=True)

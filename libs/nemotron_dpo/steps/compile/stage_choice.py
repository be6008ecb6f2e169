"""Choose which stages of a plan run: those that --from, --to and --force ask for, and those that are not up to date."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import stage_cache
from nemotron_dpo.steps.compile.beginnings import Beginning, beginning_of, family_of, gone_on
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.stage_cache import CacheEntry
from nemotron_dpo.steps.compile.stage_keys import stage_key
from nemotron_dpo.steps.compile.stages import Plan, Stage


@dataclass(frozen=True)
class StageChoice:
    """A stage up to --to. If `is_forced`, it runs even if it is up to date. If `is_given`, it must be up to date.

    If `is_anew`, it does not go on from a shorter one, nor takes what one went on to.
    """

    stage: Stage
    is_forced: bool = False
    is_given: bool = False
    is_anew: bool = False


@dataclass(frozen=True)
class StageDecision:
    """What happens to a stage: its outputs are taken from the cache `entry`; if that is None, the stage runs.

    If `is_forced`, it runs from its start, and does not resume. `key` names its outputs in the cache; None if they have no key.
    `family` is what it shares with shorter and longer ones; it goes on from `beginning`, if that has what it takes.
    """

    stage: Stage
    key: str | None
    entry: CacheEntry | None
    is_forced: bool
    family: str | None = None
    beginning: Beginning | None = None

    @property
    def goes_on_from(self) -> Beginning | None:
        """The shorter training that it is the rest of."""
        return self.beginning if self.beginning and self.beginning.can_go_on else None

    @property
    def how_it_goes_on(self) -> str:
        """What comes of its `beginning`, and how to have it otherwise."""
        one = self.beginning
        assert one is not None
        if one.can_go_on:
            return f"goes on from step {one.step} of {one.folder}, a shorter run; --force trains from the first step"
        why = f"{one.folder} has {one.step} of these steps without an optimizer's state"
        return (
            f"starts at its first step: {why}; with checkpointing.save_optimizer=true a longer run goes on from a shorter one"
        )


def choose(plan: Plan, first: str | None, last: str | None, *, force: bool, anew: bool = False) -> list[StageChoice]:
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
        choices.append(StageChoice(stage, is_forced=force or later, is_given=start is not None and n < start, is_anew=anew))
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
        decision = _decided(choice, stage_key(plan, stage, made, digests, env), family_of(plan, stage, made, digests, env))
        if decision.key is not None and not stage.may_stop_early:
            # What is made of one output must not pass for what is made of another one of the same stage.
            made.update({str(path): f"{decision.key} {n}" if n else decision.key for n, path in enumerate(stage.outputs)})
        if choice.is_given and decision.entry is None:
            raise UserError(
                f"{stage.name}: what it makes is not there", remedy=f"run without --from, or --from {stage.program}"
            )
        yield decision


def _decided(choice: StageChoice, key: str | None, family: str | None) -> StageDecision:
    """What is up to date is taken, trained from its first step or not; else the stage goes on from a beginning, or runs."""
    stage = choice.stage
    fresh = StageDecision(stage, key, None, choice.is_forced, family)
    if key is None or (choice.is_forced and not choice.is_given):
        return fresh
    entry = None if stage.may_stop_early else stage_cache.find(key, stage.outputs)
    if entry is not None or family is None or choice.is_anew:
        return replace(fresh, entry=entry)
    entry = None if stage.may_stop_early else gone_on(family, stage)
    if entry is not None:
        return replace(fresh, entry=entry, key=entry.key)
    if choice.is_given or stage_cache.interrupted(key):
        return fresh
    made = replace(fresh, beginning=beginning_of(family, stage))
    return replace(made, key=made.goes_on_from.longer(key)) if made.goes_on_from else made


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

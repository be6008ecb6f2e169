"""How each step's config is read and planned, by the step's id: the one table that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_dpo.config import (
    IdleKey,
    RunConfig,
    idle_keys,
    load_plain,
    load_run,
    plain_idle_keys,
    plain_origins,
    plain_tree,
    run_origins,
    run_tree,
)
from nemotron_dpo.config.steps import (
    EnvTomlConfig,
    FromTrlConfig,
    HfToMegatronConfig,
    MegatronToHfConfig,
    MergeLoraConfig,
    PreferenceScoreConfig,
    PreferenceTokenizeConfig,
)
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import Step
from nemotron_dpo.steps.compile import dpo_plan, from_trl_plan, merge_lora_plan, single_stage_plans
from nemotron_dpo.steps.compile.data_parts import without_unread_default
from nemotron_dpo.steps.compile.dpo_missing import missing_inputs
from nemotron_dpo.steps.compile.dpo_report import report as dpo_report
from nemotron_dpo.steps.compile.from_job import from_job
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.profiles.profile import Profile

# Of (config, overrides, a profile's settings), and the step's folder as `shipped`.
Load = Callable[..., tuple[Any, list[str]]]


@dataclass(frozen=True)
class Planner:
    """What a step does with its config.

    `load` reads it, `origins` says where its values come from, `tree` makes plain data of it, `compile` plans it for
    (config, job folder, step folder), `missing` names what it would stumble on (with look=False no files are looked for),
    `report` tells what came of it, and what to do next after the command as it was typed; `forecast` what it will cost, on a
    profile and with the tokenized pairs where there are any. `idle` names the keys of its files that have no meaning here;
    `settled` gives the config as this machine can run it, with warnings of what it lacks; `begun` has what a job trained in the
    place of the job, with notes, for any profile; `short` says what this machine may run out of, `time` how long the run is
    going to take with the tokenized pairs, where that is known. `programs` are those that its stages may run, in their order.
    """

    config: type[Any]
    load: Load
    origins: Callable[..., dict[str, str]]
    tree: Callable[[Any], dict[str, Any]]
    compile: Callable[[Any, Path, Path], Plan]
    missing: Callable[..., list[str]]
    report: Callable[[Plan, Any, Sequence[str]], str]
    programs: tuple[str, ...]
    forecast: Callable[[Any, Profile, Path | None], str] | None = None
    idle: Callable[..., list[IdleKey]] | None = None
    settled: Callable[[Any], tuple[Any, list[str]]] | None = None
    short: Callable[[Any], list[str]] = lambda config: []
    time: Callable[..., str | None] = lambda config, profile, pairs, *, is_scored: None
    begun: Callable[[Any, Profile], tuple[Any, list[str]]] = lambda config, profile: (config, [])


def planner_of(step: Step) -> Planner:
    """The planner of `step`. Raises UserError for a manifest that no code goes with."""
    if step.id not in _PLANNERS:
        raise UserError("is known by its manifest alone; this program cannot run it", source=step.id)
    return _PLANNERS[step.id]


def key_lines(step: Step, pattern: str) -> list[str]:
    """Lines on the keys of the configs of `step`. Raises UserError where none is like `pattern`."""
    from nemotron_dpo.config.key_help import key_help

    lines = key_help(planner_of(step).config, pattern)
    if not lines:
        raise UserError("no key is like that", source=f"--keys {pattern}", remedy=f"`show {step.id} --keys` shows all")
    return lines


_load_dpo = partial(load_run, with_run_env=True)
_idle_dpo = partial(idle_keys, with_run_env=True)


def _dpo_forecast(run: RunConfig, profile: Profile, pairs: Path | None) -> str:
    from nemotron_dpo.steps.estimate.forecast import forecast

    return forecast(run, profile, pairs)


def _dpo_time(run: RunConfig, profile: Profile, pairs: Path, *, is_scored: bool) -> str | None:
    from nemotron_dpo.steps.estimate.forecast import expected_time

    return expected_time(run, profile, pairs, is_scored=is_scored)


def _dpo_short(run: RunConfig) -> list[str]:
    from nemotron_dpo.steps.estimate.forecast import short_of_disk

    return short_of_disk(run)


def _other_step(config: type[Any], compile_: Callable[[Any, Path, Path], Plan], *programs: str) -> Planner:
    load, where, idle = partial(load_plain, config), partial(plain_origins, config), partial(plain_idle_keys, config)
    missing, report = single_stage_plans.missing, single_stage_plans.report
    return Planner(config, load, where, plain_tree, compile_, missing, report, programs, idle=idle)


_PLANNERS = {
    "rl/nemo_rl/dpo": Planner(
        RunConfig,
        _load_dpo,
        run_origins,
        run_tree,
        dpo_plan.compile_plan,
        missing_inputs,
        dpo_report,
        ("preference-tokenize", "ref-logprobs", "mixture", "dpo-train", "ckpt-export"),
        _dpo_forecast,
        _idle_dpo,
        without_unread_default,
        _dpo_short,
        _dpo_time,
        from_job,
    ),
    "convert/hf_to_megatron": _other_step(HfToMegatronConfig, single_stage_plans.plan_hf_to_megatron, "ckpt-export"),
    "convert/megatron_to_hf": _other_step(MegatronToHfConfig, single_stage_plans.plan_megatron_to_hf, "ckpt-export"),
    "convert/merge_lora": _other_step(MergeLoraConfig, merge_lora_plan.plan_merge_lora, "ckpt-export"),
    "data_prep/preference_tokenize": _other_step(
        PreferenceTokenizeConfig, single_stage_plans.plan_tokenize, "preference-tokenize"
    ),
    "eval/preference_score": _other_step(
        PreferenceScoreConfig, single_stage_plans.plan_score, "preference-tokenize", "ref-logprobs", "margins"
    ),
    "env/from_trl": Planner(
        FromTrlConfig,
        from_trl_plan.load,
        from_trl_plan.origins,
        plain_tree,
        from_trl_plan.plan_from_trl,
        from_trl_plan.missing,
        from_trl_plan.report,
        ("from-trl",),
    ),
    "env/env_toml": _other_step(EnvTomlConfig, single_stage_plans.plan_env_toml, "env-toml"),
}

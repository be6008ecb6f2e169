"""A run from what the command line asks for to a plan, and what a dry run shows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nemotron_dpo.config import Environment, leaves, load_environment, redact, with_home
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import text
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.catalogue import planners as kinds
from nemotron_dpo.steps.compile import job_record as job
from nemotron_dpo.steps.compile import stage_choice as choice
from nemotron_dpo.steps.compile.arguments import sort_arguments
from nemotron_dpo.steps.compile.profile import Profile
from nemotron_dpo.steps.compile.run_env import with_environment
from nemotron_dpo.steps.compile.stages import Plan

# Takes one line of facts for a person.
Say = Callable[[str], object]


@dataclass(frozen=True)
class Request:
    """The command line: `tokens` follow `step`, `first` and `last` are names of stages, `argv` is all of it as typed.

    `options` are the names of those that there are. `attached`: it stays until the run ends; otherwise it returns once that is
    submitted.
    """

    step: str
    argv: Sequence[str]
    tokens: Sequence[str] = ()
    options: Sequence[str] = ()
    config: str | None = None
    attached: bool = True
    dry_run: bool = False
    first: str | None = None
    last: str | None = None
    force: bool = False
    force_squash: bool = False


@dataclass(frozen=True)
class Run:
    """A step with its config compiled; `choices` are the stages that count."""

    request: Request
    created: datetime
    kind: kinds.Kind
    config: Any
    plan: Plan
    choices: Sequence[choice.Choice]
    provenance: job.Provenance

    @property
    def profile(self) -> Profile:
        return self.provenance.profile

    @property
    def ends_early(self) -> bool:
        """Whether stages at the end are left out."""
        return self.choices[-1].stage != self.plan.stages[-1]


def compile_run(request: Request, where: Profile, say: Say) -> Run:
    """Compile `request` for `where`, touching nothing; what has no effect is told to `say`. Raises UserError.

    `force` also sets a config's own `force`.
    """
    now = datetime.now()
    found = manifest.find_step(request.step, manifest.discover(manifest.configs_root()))
    kind = kinds.kind_of(found)
    path = manifest.find_config(found, request.config)
    known = kind.config.__dataclass_fields__
    forced = ["force=true"] if request.force and "force" in known else []
    arguments = sort_arguments([*request.tokens, *forced], known, request.options)
    for remark in arguments.remarks:
        say(f"warning: {remark}")
    where = with_environment(where, given := load_environment(path, arguments.overrides))
    config, warnings = kind.load(path, arguments.overrides, where.cluster())
    config = with_home(config) if where.executor == "local" else config
    _check_sizes(config, where, given)
    for warning in warnings:
        say(f"warning: {warning}")
    plan = kind.compile(config, job.job_folder(found.id, now), found.folder)
    choices = choice.choose(plan, request.first, request.last, force=request.force)
    provenance = job.Provenance(found.id, request.argv, path, arguments.overrides, where)
    return Run(request, now, kind, config, plan, choices, provenance)


def _check_sizes(config: Any, where: Profile, given: Environment) -> None:
    """Refuse a config that says in two places on how many processes it runs, and not the same."""
    for name, key in where.sizes().items() if hasattr(config, "cluster") else ():
        asked, made = where.settings[key], getattr(config.cluster, name)
        if key in given.settings and asked != made:
            message = f"is {asked}, and cluster.{name} is {made}"
            raise UserError(message, source=where.origins.get(key), field=f"run.env.{key}", remedy="set one of them")


def print_config(run: Run) -> None:
    """The merged config with the origin of its values, then where it runs."""
    given, where = run.provenance, run.profile
    origins = run.kind.origins(given.config, given.overrides, where.cluster())
    settings = {key: value for key, value in where.settings.items() if key != "extends"}
    origins |= {f"run.env.{key}": where.origins.get(key, "profile") for key in leaves(settings)}
    for name, key in where.sizes().items():
        if origins.get(f"cluster.{name}") == "profile":
            origins[f"cluster.{name}"] = origins[f"run.env.{key}"]
    merged = text.flat(redact(run.kind.tree(run.config) | ({"run": {"env": settings}} if settings else {})))
    print(text.with_origins(merged, origins, given.config.parent, given.profile.name))


def forecast_parts(run: Run, pairs: Path | None = None) -> list[tuple[str, str]]:
    """What the run will cost, for steps that train; `pairs` is the tokenized training set where there is one."""
    if run.kind.forecast is None:
        return []
    return [("estimate", run.kind.forecast(run.config, run.profile, pairs))]


def print_parts(parts: Sequence[tuple[str, str]]) -> None:
    """(what, text), each under its name."""
    for name, content in parts:
        print(f"\n# {name}\n{content.rstrip()}")

"""From what the command line asks for to a plan."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nemotron_dpo.config import NEMO_RUN, RunEnv, checked_name, load_run_env, redact_argv, with_home, with_job_folder
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.compile.arguments import sort_arguments
from nemotron_dpo.steps.compile.job_record import Provenance, job_folder
from nemotron_dpo.steps.compile.planners import Planner, planner_of
from nemotron_dpo.steps.compile.stage_choice import StageChoice, choose
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.profiles.run_env import unplaced, with_run_env

# Takes one line of facts for a person.
Say = Callable[[str], object]
_NAME = "run.name="
_PUBLISHED = re.compile(r"(^|[/#])nvidia/(nemo|nemo-rl|pytorch)(:|$)")


@dataclass(frozen=True)
class Request:
    """The command line of `nemotron-steps run`. `argv` is all of it as typed, `tokens` is what follows `step`.

    `options` are the command's own, which a token may misspell. `first` and `last` name the stages of --from and --to. Where it
    is `attached`, the program stays until the run ends, else it returns once the run is submitted. People call it `name`. With
    `anew` training does not go on from a shorter one.
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
    oversubscribe: bool = False
    anew: bool = False
    name: str | None = None


@dataclass(frozen=True)
class CompiledRun:
    """A request with its config merged and its stages planned. `choices` are the stages up to --to; an executor runs these.

    `idle` has a line for each key of the config's files that has no meaning here.
    """

    request: Request
    created: datetime
    planner: Planner
    config: Any
    plan: Plan
    choices: Sequence[StageChoice]
    provenance: Provenance
    step_folder: Path
    idle: Sequence[str] = ()

    @property
    def profile(self) -> Profile:
        return self.provenance.profile

    @property
    def ends_early(self) -> bool:
        """Whether stages at the end are left out."""
        return self.choices[-1].stage != self.plan.stages[-1]

    def idle_lines(self, *, verbose: bool) -> list[str]:
        """How many keys have no meaning here, and where `verbose` which and why."""
        if not self.idle:
            return []
        one = len(self.idle) == 1
        how = "" if verbose else "; --verbose says why"
        count = f"{len(self.idle)} key{'s' * (not one)} of the config {'has' if one else 'have'} no meaning here{how}"
        return [*(self.idle if verbose else ()), count]

    def report(self, plan: Plan) -> str:
        """What came of the run, whose outputs lie where `plan` says, and what can be done next."""
        return self.planner.report(plan, self.config, ["nemotron-steps", *redact_argv(self.request.argv[1:])])


def compile_run(
    request: Request, profile: Profile, say: Say, job_of: Callable[[str, datetime, str | None], Path] = job_folder
) -> CompiledRun:
    """Compile `request` for `profile` and touch nothing. What has no effect is told to `say`. Raises UserError.

    `job_of` gives the job folder of a step, a time and a name. `force` sets a config's own key of that name too.
    """
    now = datetime.now()
    found = manifest.find_step(request.step, manifest.discover(manifest.configs_root()))
    planner = planner_of(found)
    path = manifest.find_config(found, request.config)
    known = planner.config.__dataclass_fields__
    forced = ["force=true"] if request.force and "force" in known else []
    arguments = sort_arguments([*request.tokens, *forced], known, request.options)
    for remark in arguments.remarks:
        say(f"warning: {remark}")
    profile = with_run_env(profile, given := load_run_env(path, arguments.overrides, shipped=found.folder))
    overrides = tuple(word for word in arguments.overrides if not word.startswith(_NAME))  # no stage and no config reads it
    config, warnings = planner.load(path, overrides, profile.base(), shipped=found.folder)
    name = given.name if request.name is None else checked_name(request.name, "--name")
    job = job_of(found.id, now, name)
    config = config if _mounts_nemo_run(profile) else with_job_folder(config, job)
    config = with_home(config) if profile.executor == "local" else config
    config, notes = planner.begun(config, profile)
    if profile.executor == "local" and planner.settled:
        config, changes = planner.settled(config)
        warnings += changes
    _check_sizes(config, profile, given)
    _remark_image(profile, say)
    for warning in warnings:
        say(f"warning: {warning}")
    plan = planner.compile(config, job, found.folder)
    for note in (*notes, *plan.notes):
        say(note)
    choices = choose(plan, request.first, request.last, force=request.force, anew=request.anew)
    provenance = Provenance(found.id, request.argv, path, overrides, profile, name)
    idle = planner.idle(path, overrides, profile.base(), shipped=found.folder) if planner.idle else []
    lines = [*map(str, idle), *_idle_places(profile, given)]
    return CompiledRun(request, now, planner, config, plan, choices, provenance, found.folder, lines)


def _mounts_nemo_run(profile: Profile) -> bool:
    """Whether a run under `profile` has a folder of its own at /nemo_run, where NVIDIA's configs write."""
    if profile.executor == "local":
        return os.path.ismount(NEMO_RUN)
    mounts = str([profile.settings.get(key) for key in ("mounts", "lustre_mount", "pvcs")])
    return re.search(rf"(?<![\w/.-]){NEMO_RUN}/?(?![\w/.-])", mounts) is not None


def _idle_places(profile: Profile, given: RunEnv) -> list[str]:
    """A line for each key of a config's own run.env that says nothing on this machine."""
    names = unplaced(profile, given) if profile.executor == "local" else ()
    places = {key: next(at for name, at in given.origins.items() if name.partition(".")[0] == key) for key in names}
    return [
        f'{at}: "run.env.{key}" has no meaning here: it is for a cluster, and this run is local' for key, at in places.items()
    ]


def _remark_image(profile: Profile, say: Say) -> None:
    """Say that NVIDIA's own images, which its configs name, have none of the programs that the stages are."""
    image = str(profile.settings.get("container_image") or "")
    brings_its_own = profile.settings.get("workspace") or profile.settings.get("startup_commands")
    if profile.executor != "local" and _PUBLISHED.search(image) and not brings_its_own:
        remedy = "install nemotron-dpo in one made from it, and name that in run.env.container_image"
        say(f"warning: {profile.origins.get('container_image', profile.source)}: {image} lacks nemotron-dpo: {remedy}")


def _check_sizes(config: Any, profile: Profile, given: RunEnv) -> None:
    """Refuse a config whose run.env and cluster section ask for different numbers of processes."""
    for name, key in profile.sizes().items() if hasattr(config, "cluster") else ():
        asked, made = profile.settings[key], getattr(config.cluster, name)
        if key in given.settings and asked != made:
            message = f"is {asked}, and cluster.{name} is {made}"
            raise UserError(message, source=profile.origins.get(key), field=f"run.env.{key}", remedy="set one of them")

"""What a shell may offer to complete: steps, configs of a step, profiles, stages, and keys of a config. Never fails."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import Step, configs_root, discover, find_step
from nemotron_dpo.steps.profiles.env_file import profile_names
from nemotron_dpo.steps.profiles.keys import key_tables


def steps() -> list[tuple[str, str]]:
    """(id, name) of every step, and the short form of its id too."""
    found = discover(configs_root())
    short = [(step.id.rpartition("/")[2], step.name) for step in found]
    return [(step.id, step.name) for step in found] + short


def configs(step: str) -> list[str]:
    """Names of the configs of `step`."""
    found = _found(step)
    return list(found.configs) if found else []


def profiles() -> list[tuple[str, str]]:
    """(name, executor) of every profile of the env.toml that would be read."""
    try:
        return profile_names()
    except UserError:
        return []


def stages(step: str) -> list[str]:
    """Programs that `step` may run."""
    found = _found(step)
    return list(_planner(found).programs) if found else []


def keys(step: str) -> list[str | tuple[str, str]]:
    """The keys of the config of `step`, and those of any profile under run.env, ready for a value."""
    from nemotron_dpo.config import known_keys

    found = _found(step)
    if found is None:
        return []
    placed = {name: key.meaning for table in key_tables().values() for name, key in table.items()}
    own: list[str | tuple[str, str]] = [f"{key}=" for key in known_keys(_planner(found).config)]
    return own + [(f"run.env.{name}=", meaning) for name, meaning in placed.items() if name not in ("executor", "extends")]


def _planner(step: Step) -> Any:
    from nemotron_dpo.steps.compile.planners import planner_of  # it takes a quarter of a second, and not every word needs it

    return planner_of(step)


def _found(step: str) -> Step | None:
    try:
        return find_step(step, discover(configs_root()))
    except UserError:
        return None

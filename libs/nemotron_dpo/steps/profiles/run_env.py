"""A profile over what a config says of where it runs (run.env): which of the two counts, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemotron_dpo.config import RunEnv
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.profiles.env_file import variables
from nemotron_dpo.steps.profiles.keys import Key, nearest_key
from nemotron_dpo.steps.profiles.profile import Profile


def with_run_env(profile: Profile, given: RunEnv) -> Profile:
    """`profile` over what a config says in run.env: env_vars merge, mounts add up, and what overrides set wins.

    Raises UserError for a key that is none.
    """
    settings = dict(profile.settings)
    for key, value in given.settings.items():
        known = _known(key, profile, given)
        if key == "env_vars":
            settings[key] = _merged_variables(value, profile, given)
        elif key == "mounts" and key in settings and key not in given.typed:
            settings[key] = [*_listed(value, given), *settings[key]]
        elif known.config_wins or key not in settings or any(_within(name, key) for name in given.typed):
            is_text = known.kind.is_number and isinstance(value, str) and value.isdecimal()  # as ${oc.env:NAME} gives it
            settings[key] = int(value) if is_text else value
    own = {name: place for name, place in given.origins.items() if _is_ours(name, settings, profile, given)}
    return replace(profile, env_vars=variables(settings), settings=settings, origins=own)


def unplaced(profile: Profile, given: RunEnv) -> tuple[str, ...]:
    """The keys without use on the profile's executor that the file of a config sets, and no profile and no override."""
    typed = {name.partition(".")[0] for name in given.typed}
    return tuple(key for key in profile.idle_keys() if key in given.settings and key in _own(profile) and key not in typed)


def _own(profile: Profile) -> set[str]:
    return {name.partition(".")[0] for name in profile.origins}


def _known(key: str, profile: Profile, given: RunEnv) -> Key:
    """What is known of `key`, first to the profile's own executor. Raises UserError where it cannot stand in run.env."""
    place = next((place for name, place in given.origins.items() if _within(name, key)), None)
    if key in ("executor", "extends"):
        raise UserError("is a profile's to say", source=place, field=f"run.env.{key}", remedy="give -r or -b PROFILE")
    known = profile.known(key)
    if known is None:
        raise UserError("is no known key", source=place, field=f"run.env.{key}", remedy=nearest_key(key))
    if known.kind.is_time and isinstance(given.settings[key], int | float):
        raise UserError("is a number to YAML", source=place, field=f"run.env.{key}", remedy='quote it: "HH:MM:SS"')
    return known


def _within(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _is_ours(name: str, settings: Mapping[str, Any], profile: Profile, given: RunEnv) -> bool:
    """Whether the dotted `name` has the value that run.env gives it, and not the profile's."""
    key, _, variable = name.partition(".")
    known = profile.known(key)
    if name in given.typed or (known is not None and known.config_wins):
        return True
    if key == "env_vars":
        return variable not in profile.env_vars
    return key not in profile.settings or key == "mounts"


def _merged_variables(value: Any, profile: Profile, given: RunEnv) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError("is no table", source=given.origins.get("env_vars"), field="run.env.env_vars")
    typed = {name: text for name, text in value.items() if f"env_vars.{name}" in given.typed}
    return {**value, **profile.env_vars, **typed}


def _listed(value: Any, given: RunEnv) -> list[Any]:
    if not isinstance(value, list):
        raise UserError("is no list", source=given.origins.get("mounts"), field="run.env.mounts")
    return value

"""Read env.toml: find it, merge what a profile extends, and name the profiles there are."""

from __future__ import annotations

import datetime
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import expand_home
from nemotron_dpo.steps.profiles.keys import EXECUTORS
from nemotron_dpo.steps.profiles.profile import Profile

NOT_PROFILES = ("wandb", "cli", "cache", "artifacts")


def load_profile(name: str | None) -> Profile:
    """The profile `name`; None is this machine, with the table [wandb] of env.toml where there is one.

    Raises UserError for an unknown one or a bad file.
    """
    if name is None:
        found = _found()
        return Profile("local", "local", wandb=_wandb(_tables(found), found) if found else {})
    path = _env_file()
    tables = _tables(path)
    profiles = {key: table for key, table in tables.items() if key not in NOT_PROFILES and isinstance(table, dict)}
    settings = {key: _plain(value) for key, value in _merged(name, profiles, path, ()).items()}
    executor = settings.get("executor", "local")
    if executor not in EXECUTORS:
        raise UserError(f"profile {name}: is {executor!r} where {', '.join(EXECUTORS)} is due", source=path, field="executor")
    return Profile(name, executor, variables(settings), settings, path, wandb=_wandb(tables, path))


def variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables that `settings` give a run, as text; one that is null is none."""
    return {str(key): str(value) for key, value in settings.get("env_vars", {}).items() if value is not None}


def profile_names() -> list[tuple[str, str]]:
    """(name, executor or parent) of every profile. Raises UserError where there is no env.toml or it is broken."""
    tables = _tables(_env_file()).items()
    profiles = [(name, table) for name, table in tables if name not in NOT_PROFILES and isinstance(table, dict)]
    return [(name, str(table.get("executor") or f"extends {table.get('extends')}")) for name, table in profiles]


def _plain(value: Any) -> Any:
    """`value`; TOML reads 04:00:00 without quotes as a time of day, where a time limit is meant."""
    return value.isoformat() if isinstance(value, datetime.time) else value


def _env_file() -> Path:
    if found := _found():
        return found
    if named := os.environ.get("NEMOTRON_ENV_FILE"):
        raise UserError("no such file", source=named, remedy="NEMOTRON_ENV_FILE names it")
    remedy = "`nemotron-steps run env/env_toml -c slurm` writes one to fill in; NEMOTRON_ENV_FILE names one elsewhere"
    raise UserError("no env.toml from here up to the folder with pyproject.toml", remedy=remedy)


def _found() -> Path | None:
    """env.toml, or the file that NEMOTRON_ENV_FILE names, if there is one."""
    named = expand_home(os.environ.get("NEMOTRON_ENV_FILE", ""))
    if named:
        return Path(named) if Path(named).is_file() else None
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "env.toml").is_file():
            return folder / "env.toml"
        if (folder / "pyproject.toml").is_file():
            break
    return None


def _wandb(tables: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The table [wandb]: each of its keys is a WANDB_ variable of the stages. Raises UserError where it cannot be."""
    table = tables.get("wandb", {})
    if not isinstance(table, dict):
        raise UserError("is no table", source=path, field="wandb", remedy='write [wandb], and project = "..." below it')
    for key, value in table.items():
        if isinstance(value, dict | list):
            remedy = "its keys become WANDB_ variables, which are text"
            raise UserError("is a table or a list", source=path, field=f"wandb.{key}", remedy=remedy)
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in table.items()}


def _tables(path: Path) -> dict[str, Any]:
    return documents.read_toml(path)


def _merged(name: str, profiles: dict[str, Any], path: Path, below: tuple[str, ...]) -> dict[str, Any]:
    if name in below:
        raise UserError(f"profile {below[0]} extends itself ({' -> '.join((*below, name))})", source=path)
    if name not in profiles:
        close = difflib.get_close_matches(name, profiles, n=1, cutoff=0.6)
        guess = f"did you mean {close[0]}?" if close else f"it has {', '.join(profiles) or 'none'}"
        child = f", which {below[-1]} extends" if below else ""
        raise UserError(f"no profile {name or '(empty)'}{child}", source=path, remedy=guess)
    own = profiles[name]
    for key, kind, what in (("env_vars", dict, "table"), ("mounts", list, "list")):
        if key in own and not isinstance(own[key], kind):
            raise UserError(f"profile {name}: is no {what}", source=path, field=key)
    if "extends" not in own:
        return dict(own)
    parent = _merged(str(own["extends"]), profiles, path, (*below, name))
    merged = {**parent, **own}
    if "env_vars" in parent and "env_vars" in own:
        merged["env_vars"] = {**parent["env_vars"], **own["env_vars"]}
    if "mounts" in parent and "mounts" in own:
        merged["mounts"] = [*parent["mounts"], *own["mounts"]]
    return merged

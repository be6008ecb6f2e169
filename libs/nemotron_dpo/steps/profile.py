"""Profiles: the tables of env.toml that say where a step runs."""

from __future__ import annotations

import datetime
import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError

NOT_PROFILES = ("wandb", "cli", "cache", "artifacts")
EXECUTORS = ("local", "slurm", "lepton", "dgxcloud")
_NUM_PROCESSES = ("nproc_per_node", "gpus_per_node")
_IN_CLOUD = ("nprocs_per_node", *_NUM_PROCESSES)
_LOCAL_KEYS = ("executor", "extends", "env_vars", "nodes", *_NUM_PROCESSES)


@dataclass(frozen=True)
class Profile:
    """One table of env.toml, its parents merged in."""

    name: str
    executor: str
    env_vars: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def cluster(self) -> dict[str, Any]:
        """What it says of the number of processes, as a config that lies under the step's own."""
        keys = {"local": _NUM_PROCESSES, "slurm": (*_NUM_PROCESSES, "ntasks_per_node")}
        num_processes = next((size for key in keys.get(self.executor, _IN_CLOUD) if (size := self.settings.get(key))), None)
        sizes = {"gpus_per_node": num_processes, "num_nodes": self.settings.get("nodes")}
        given = {key: value for key, value in sizes.items() if value is not None}
        return {"cluster": given} if given else {}

    def idle_keys(self) -> list[str]:
        """The keys that the local executor has no use for."""
        return sorted(set(self.settings) - set(_LOCAL_KEYS))


def load_profile(name: str | None) -> Profile:
    """The profile `name`; None is this machine, without env.toml. Raises UserError for an unknown one or a bad file."""
    if name is None:
        return Profile("local", "local")
    path = _env_file()
    profiles = {key: table for key, table in _tables(path).items() if key not in NOT_PROFILES and isinstance(table, dict)}
    settings = {key: _plain(value) for key, value in _merged(name, profiles, path, ()).items()}
    executor = settings.get("executor", "local")
    if executor not in EXECUTORS:
        raise UserError(f"profile {name}: is {executor!r} where {', '.join(EXECUTORS)} is due", source=path, field="executor")
    env_vars = {str(key): str(value) for key, value in settings.get("env_vars", {}).items()}
    return Profile(name, executor, env_vars, settings, path)


def profile_names() -> list[tuple[str, str]]:
    """(name, executor or parent) of every profile. Raises UserError where there is no env.toml or it is broken."""
    tables = _tables(_env_file()).items()
    profiles = [(name, table) for name, table in tables if name not in NOT_PROFILES and isinstance(table, dict)]
    return [(name, str(table.get("executor") or f"extends {table.get('extends')}")) for name, table in profiles]


def _plain(value: Any) -> Any:
    """`value`; TOML reads 04:00:00 without quotes as a time of day, where a time limit is meant."""
    return value.isoformat() if isinstance(value, datetime.time) else value


def _env_file() -> Path:
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        if not Path(named).is_file():
            raise UserError("no such file", source=named, remedy="NEMOTRON_ENV_FILE names it")
        return Path(named)
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "env.toml").is_file():
            return folder / "env.toml"
        if (folder / "pyproject.toml").is_file():
            break
    raise UserError("no env.toml from here up to the folder with pyproject.toml", remedy="write one, or set NEMOTRON_ENV_FILE")


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not TOML ({error})", source=path) from None


def _merged(name: str, profiles: dict[str, Any], path: Path, below: tuple[str, ...]) -> dict[str, Any]:
    if name in below:
        raise UserError(f"profile {below[0]} extends itself ({' -> '.join((*below, name))})", source=path)
    if name not in profiles:
        close = difflib.get_close_matches(name, profiles, n=1, cutoff=0.6)
        guess = f"did you mean {close[0]}?" if close else f"it has {', '.join(profiles) or 'none'}"
        child = f", which {below[-1]} extends" if below else ""
        raise UserError(f"no profile {name}{child}", source=path, remedy=guess)
    own = profiles[name]
    if "extends" not in own:
        return dict(own)
    parent = _merged(str(own["extends"]), profiles, path, (*below, name))
    merged = {**parent, **own}
    if "env_vars" in parent or "env_vars" in own:
        merged["env_vars"] = {**parent.get("env_vars", {}), **own.get("env_vars", {})}
    if "mounts" in parent and "mounts" in own:
        merged["mounts"] = [*parent["mounts"], *own["mounts"]]
    return merged

"""Profiles: the tables of env.toml that say where a step runs."""

from __future__ import annotations

import datetime
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import expand_home

NOT_PROFILES = ("wandb", "cli", "cache", "artifacts")
EXECUTORS = ("local", "slurm", "lepton", "dgxcloud")
# Every key that some executor has a use for.
KEYS = {
    "executor", "extends", "container_image", "nodes", "gpus_per_node", "nproc_per_node", "env_vars", "startup_commands",
    "run_command", "workspace", "mounts", "account", "partition", "run_partition", "batch_partition", "ntasks_per_node",
    "cpus_per_task", "time", "mem", "exclusive", "tunnel", "host", "user", "identity", "remote_job_dir", "lustre_mount",
    "setup_lines", "build_partition", "build_time", "build_image", "build_cache_dir", "build_include_gpus",
    "build_gpus_per_node", "nemo_run_dir", "node_group", "node_reservation", "resource_shape", "nprocs_per_node",
    "shared_memory_size", "image_pull_secrets", "pre_launch_commands", "custom_spec", "base_url", "kube_apiserver_url",
    "client_id", "client_secret", "app_id", "app_secret", "project_name", "pvc_nemo_run_dir", "pvcs",
    "distributed_framework", "gpu_memory_gb",
}  # fmt: skip
_NUM_PROCESSES = ("nproc_per_node", "gpus_per_node")
# executor -> the keys that say how many processes a node runs; the first that is set counts
_DECISIVE = {
    "local": _NUM_PROCESSES,
    "slurm": (*_NUM_PROCESSES, "ntasks_per_node"),
    "lepton": ("nprocs_per_node", *_NUM_PROCESSES),
    "dgxcloud": ("nprocs_per_node", *_NUM_PROCESSES),
}
_LOCAL_KEYS = ("executor", "extends", "env_vars", "nodes", "gpu_memory_gb", *_NUM_PROCESSES)


@dataclass(frozen=True)
class Profile:
    """One table of env.toml, its parents merged in; `origins` maps the dotted keys that a config's run.env set to places."""

    name: str
    executor: str
    env_vars: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    origins: dict[str, str] = field(default_factory=dict)

    def cluster(self) -> dict[str, Any]:
        """What it says of the number of processes, as a config that lies under the step's own."""
        given = {name: self.settings[key] for name, key in self.sizes().items()}
        for name, key in self.sizes().items():
            if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
                raise self.refusal(key, f"is {given[name]!r} where a number of 1 or more is due")
        return {"cluster": given} if given else {}

    def sizes(self) -> dict[str, str]:
        """Key of a config's cluster section -> the key of ours that decides it; those that a config set come first.

        But for ntasks_per_node, which says how many processes there are only where nothing else does.
        """
        keys = _DECISIVE[self.executor]
        keys = (*(key for key in keys if key in self.origins and key != "ntasks_per_node"), *keys)
        decisive = {"gpus_per_node": next((key for key in keys if self.settings.get(key)), None), "num_nodes": "nodes"}
        return {name: key for name, key in decisive.items() if key and self.settings.get(key) is not None}

    def idle_keys(self) -> list[str]:
        """The keys that the local executor has no use for. Raises UserError for one that no executor has."""
        for key in sorted(set(self.settings) - KEYS):
            raise self.refusal(key, "is no known key", nearest_key(key))
        return sorted(set(self.settings) - set(_LOCAL_KEYS))

    def refusal(self, key: str, message: str, remedy: str | None = None) -> UserError:
        """The error about `key`, which names the place where it is set."""
        if place := self.origins.get(key):
            return UserError(message, source=place, field=f"run.env.{key}", remedy=remedy)
        return UserError(f"profile {self.name}: {message}", source=self.source, field=key, remedy=remedy)


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
    return Profile(name, executor, variables(settings), settings, path)


def variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables that `settings` give a run, as text; one that is null is none."""
    return {str(key): str(value) for key, value in settings.get("env_vars", {}).items() if value is not None}


def nearest_key(key: str) -> str | None:
    """The remedy for a key that is none."""
    close = difflib.get_close_matches(key, sorted(KEYS), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def profile_names() -> list[tuple[str, str]]:
    """(name, executor or parent) of every profile. Raises UserError where there is no env.toml or it is broken."""
    tables = _tables(_env_file()).items()
    profiles = [(name, table) for name, table in tables if name not in NOT_PROFILES and isinstance(table, dict)]
    return [(name, str(table.get("executor") or f"extends {table.get('extends')}")) for name, table in profiles]


def _plain(value: Any) -> Any:
    """`value`; TOML reads 04:00:00 without quotes as a time of day, where a time limit is meant."""
    return value.isoformat() if isinstance(value, datetime.time) else value


def _env_file() -> Path:
    named = expand_home(os.environ.get("NEMOTRON_ENV_FILE", ""))
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

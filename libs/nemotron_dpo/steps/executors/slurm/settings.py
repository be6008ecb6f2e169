"""What a Slurm profile says, checked: types, unknown keys, and that no value can be more than a value in the script."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nemotron_dpo.steps.compile.profile import Profile
from nemotron_dpo.steps.executors.shared.table import Table

# key -> what it holds; `word` is one that Slurm reads from a directive, `lines` one line of shell or a list of them
_KEYS = {
    "executor": "text", "extends": "text", "container_image": "text", "nodes": "number", "gpus_per_node": "count",
    "env_vars": "table", "startup_commands": "lines", "run_command": "command", "workspace": "path",
    "account": "word", "partition": "word", "run_partition": "word", "batch_partition": "word",
    "nproc_per_node": "number", "ntasks_per_node": "number", "cpus_per_task": "number", "time": "word", "mem": "word",
    "exclusive": "exclusive", "tunnel": "text", "host": "text", "user": "text", "identity": "text",
    "remote_job_dir": "path", "mounts": "list", "lustre_mount": "text", "setup_lines": "lines",
    "build_partition": "word", "build_time": "word", "build_image": "text", "build_cache_dir": "path",
    "build_include_gpus": "flag", "build_gpus_per_node": "number", "gpu_memory_gb": "number",
}  # fmt: skip
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+)(?::(\d+))?)?)")


@dataclass(frozen=True)
class Build:
    """How a container image is imported."""

    partition: str | None
    time: str | None
    cache_dir: str | None
    gpus_per_node: int | None


@dataclass(frozen=True)
class Settings:
    """A Slurm profile. `job_root` is None where jobs lie in the local job folder, which nodes then share with us."""

    name: str
    source: str
    account: str | None
    partition: str | None
    time: str | None
    mem: str | None
    exclusive: str | None
    has_gpus: bool
    cpus_per_node: int | None
    tunnel: Literal["local", "ssh"]
    host: str | None
    user: str | None
    identity: str | None
    job_root: str | None
    workspace: str | None
    container_image: str | None
    mounts: tuple[str, ...]
    setup_lines: tuple[str, ...]
    startup_commands: tuple[str, ...]
    run_command: str
    build: Build
    idle_keys: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether the job runs in the local job folder itself."""
        return self.job_root is None


def read_settings(profile: Profile, *, attached: bool) -> Settings:
    """The settings of `profile` for a run that is followed, or not. Raises UserError naming the key."""
    given = Table(profile, _KEYS)
    given.check()
    partition = given.get("run_partition" if attached else "batch_partition") or given.get("partition")
    tunnel = given.choice("tunnel", ("local", "ssh"), "ssh" if given.get("host") else "local")
    if tunnel == "ssh" and not given.get("host"):
        given.refuse("host", "is missing", 'tunnel = "ssh" needs the login node\'s name')
    if tunnel == "ssh" and not given.get("remote_job_dir"):
        given.refuse("remote_job_dir", "is missing", "name a folder on the cluster that all nodes share")
    if time := given.get("time"):
        seconds_of(time, given)
    lustre = given.get("lustre_mount")
    return Settings(
        name=profile.name,
        source=str(profile.source),
        account=given.get("account"),
        partition=partition,
        time=time,
        mem=given.get("mem"),
        exclusive=given.get("exclusive"),
        has_gpus=bool(given.get("gpus_per_node")),
        cpus_per_node=_cpus_per_node(given.get("ntasks_per_node"), given.get("cpus_per_task")),
        tunnel=tunnel,
        host=given.get("host"),
        user=given.get("user"),
        identity=given.get("identity"),
        job_root=given.get("remote_job_dir"),
        workspace=given.get("workspace"),
        container_image=given.get("container_image"),
        mounts=(*given.get("mounts", ()), *([lustre] if lustre else [])),
        setup_lines=given.get("setup_lines", ()),
        startup_commands=given.get("startup_commands", ()),
        run_command=given.get("run_command", "{script}"),
        build=_build(given),
        idle_keys=given.idle("build_image"),
    )


def seconds_of(time: str, given: Table | None = None) -> int:
    """A time limit as Slurm writes it (minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds."""
    match = _TIME.fullmatch(time)
    if match is None:
        if given is not None:
            given.refuse("time", f"is {time!r}", 'write it as Slurm does: "HH:MM:SS" or "D-HH:MM:SS"')
        raise ValueError(time)
    days, hours, minutes, seconds, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match.group(1):
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if match.group(7):
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def _cpus_per_node(tasks: int | None, cpus: int | None) -> int | None:
    """One task a node owns the CPUs of all that were asked for: torchrun starts the processes."""
    return None if tasks is None and cpus is None else (tasks or 1) * (cpus or 1)


def _build(given: Table) -> Build:
    gpus = given.get("build_gpus_per_node") or 1 if given.get("build_include_gpus") else None
    return Build(given.get("build_partition"), given.get("build_time"), given.get("build_cache_dir"), gpus)

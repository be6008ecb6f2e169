"""What a Slurm profile says, checked: types, unknown keys, and that no value can be more than a value in the script."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NoReturn

from nemotron_dpo.steps.profile import Profile

# key -> what it holds; `word` is one that Slurm reads from a directive, `lines` one line of shell or a list of them
_KEYS = {
    "executor": "text", "extends": "text", "container_image": "text", "nodes": "number", "gpus_per_node": "count",
    "env_vars": "table", "startup_commands": "lines", "run_command": "text", "workspace": "path",
    "account": "word", "partition": "word", "run_partition": "word", "batch_partition": "word",
    "nproc_per_node": "number", "ntasks_per_node": "number", "cpus_per_task": "number", "time": "word", "mem": "word",
    "exclusive": "exclusive", "tunnel": "text", "host": "text", "user": "text", "identity": "text",
    "remote_job_dir": "path", "mounts": "list", "lustre_mount": "text", "setup_lines": "lines",
    "build_partition": "word", "build_time": "word", "build_image": "text", "build_cache_dir": "path",
    "build_include_gpus": "flag", "build_gpus_per_node": "number", "gpu_memory_gb": "number",
}  # fmt: skip
# known, and of no use to Slurm: a profile may extend one that other executors share
_ELSEWHERE = (
    "nemo_run_dir", "node_group", "node_reservation", "resource_shape", "nprocs_per_node", "shared_memory_size",
    "image_pull_secrets", "pre_launch_commands", "custom_spec", "base_url", "kube_apiserver_url", "client_id",
    "client_secret", "app_id", "app_secret", "project_name", "pvc_nemo_run_dir", "pvcs", "distributed_framework",
)  # fmt: skip
_IDLE = ("build_image", *_ELSEWHERE)
_WORD = re.compile(r"[A-Za-z0-9_.,:=+@/*%-]+")
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
    given = _Table(profile)
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
        run_command=_run_command(given),
        build=_build(given),
        idle_keys=tuple(sorted(set(profile.settings) & set(_IDLE))),
    )


def seconds_of(time: str, given: _Table | None = None) -> int:
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


def _run_command(given: _Table) -> str:
    command = given.get("run_command") or "{script}"
    if "{script}" not in command:
        given.refuse("run_command", "lacks {script}", "that is where the stage's command goes, such as nice {script}")
    return command


def _build(given: _Table) -> Build:
    gpus = given.get("build_gpus_per_node") or 1 if given.get("build_include_gpus") else None
    return Build(given.get("build_partition"), given.get("build_time"), given.get("build_cache_dir"), gpus)


class _Table:
    """The keys of a profile, each of the type it must be."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._values = profile.settings

    def check(self) -> None:
        """Refuse a key that no executor knows, and a value of another type than Slurm's keys have."""
        for key in self._values:
            if key in _KEYS:
                self.get(key)
            if key not in _KEYS and key not in _ELSEWHERE:
                close = difflib.get_close_matches(key, [*_KEYS, *_ELSEWHERE], n=1, cutoff=0.6)
                self.refuse(key, "is no known key", f"did you mean {close[0]}?" if close else None)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, checked; `default` where it is not set or empty."""
        value = self._values.get(key)
        return default if value in (None, "", [], {}) else getattr(self, f"_{_KEYS[key]}")(key, value)

    def choice(self, key: str, choices: Sequence[str], default: str) -> Any:
        """One of `choices`."""
        value = self.get(key, default)
        if value not in choices:
            self.refuse(key, f"is {value!r} where {' or '.join(choices)} is due")
        return value

    def refuse(self, key: str, message: str, remedy: str | None = None) -> NoReturn:
        """Raise UserError about `key`."""
        raise self._profile.refusal(key, message, remedy)

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f]", value):
            self.refuse(key, f"is {value!r} where one line of text is due")
        return value

    def _word(self, key: str, value: Any) -> str:
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            self.refuse(key, f"is {value!r} where a name or a number as Slurm takes it is due")
        return value

    def _path(self, key: str, value: Any) -> str:
        if not PurePosixPath(self._text(key, value)).is_absolute():
            self.refuse(key, f"is {value!r} where an absolute path is due")
        return str(PurePosixPath(value))

    def _number(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(key, f"is {value!r} where a number of 1 or more is due")
        return value

    def _count(self, key: str, value: Any) -> int:
        return 0 if value == 0 and not isinstance(value, bool) else self._number(key, value)

    def _flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.refuse(key, f"is {value!r} where true or false is due")
        return value

    def _exclusive(self, key: str, value: Any) -> str | None:
        return {True: "exclusive", False: None}[value] if isinstance(value, bool) else f"exclusive={self._word(key, value)}"

    def _list(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.refuse(key, f"is {value!r} where a list is due")
        return tuple(self._text(key, item) for item in value)

    def _lines(self, key: str, value: Any) -> tuple[str, ...]:
        lines = [value] if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) and "\0" not in line for line in lines):
            self.refuse(key, f"is {value!r} where shell commands are due")
        return tuple(lines)

    def _table(self, key: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(key, f"is {value!r} where a table is due")
        return value

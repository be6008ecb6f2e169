"""The keys of a Slurm profile, and the kinds of values that only they hold."""

from __future__ import annotations

import re
from typing import Any

from nemotron_dpo.steps.profiles.keys import COMMON, ELSEWHERE, Key, KeyTable
from nemotron_dpo.steps.profiles.kinds import COUNT, FLAG, NUMBER, PATH, SHELL_LINES, TEXT, TEXTS, Kind, UnfitValue

_WORD = re.compile(r"[A-Za-z0-9_.,:=+@/*%-]+")
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+)(?::(\d+))?)?)")


def word(value: Any) -> str:
    """What Slurm reads from a directive: no value can be more than that in the script."""
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise UnfitValue(f"is {value!r} where a name or a number as Slurm takes it is due")
    return value


def time_limit(value: Any) -> str:
    """A word that Slurm takes for a time. A number is refused: Slurm takes 5 for minutes, and who wrote it may mean hours."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise UnfitValue(f"is {value}, a number", 'write it as text, "HH:MM:SS" or "D-HH:MM:SS"')
    text = word(value)
    if _TIME.fullmatch(text) is None:
        raise UnfitValue(f"is {text!r}", 'write it as Slurm does: "HH:MM:SS" or "D-HH:MM:SS"')
    return text


def exclusive(value: Any) -> str | None:
    """The option that it stands for; None where nodes may be shared."""
    if isinstance(value, bool):
        return "exclusive" if value else None
    if value not in ("user", "mcs", "topo"):
        raise UnfitValue(f"is {value!r} where {EXCLUSIVE.name} is due")
    return f"exclusive={value}"


def seconds_of(time: str) -> int:
    """A time limit as Slurm writes it (minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds."""
    match = _TIME.fullmatch(time)
    assert match is not None  # time_limit has refused others
    days, hours, minutes, seconds, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match.group(1):
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if match.group(7):
        return (first * 60 + second) * 60 + third
    return first * 60 + second


WORD, TIME = Kind("name", word), Kind("time", time_limit, is_time=True)
EXCLUSIVE = Kind('true, false, "user", "mcs" or "topo"', exclusive)

KEYS: KeyTable = {
    **COMMON,
    **ELSEWHERE,
    "ntasks_per_node": Key(
        NUMBER, "tasks a node; processes where nothing else says", sets="gpus_per_node", yields=True, config_wins=True
    ),
    "account": Key(WORD, "who pays"),
    "partition": Key(WORD, "partition of the job"),
    "run_partition": Key(WORD, "partition with -r instead"),
    "batch_partition": Key(WORD, "partition with -b instead"),
    "cpus_per_task": Key(COUNT, "CPUs of one task; 8 for each GPU where it is not set, and 0 leaves it to the cluster"),
    "time": Key(TIME, 'time limit, "HH:MM:SS" or "D-HH:MM:SS"'),
    "mem": Key(WORD, "memory of a node, as --mem"),
    "exclusive": Key(EXCLUSIVE, "whether nodes are the job's alone"),
    "cpu_partition": Key(WORD, "partition of jobs of their own, without GPUs, that tokenize before and export after"),
    "cpu_time": Key(TIME, "their time limit; time where it is not set"),
    "cpu_mem": Key(WORD, "their memory, as --mem"),
    "cpu_cpus_per_task": Key(NUMBER, "their CPUs"),
    "tunnel": Key(TEXT, '"ssh" or "local"; ssh where there is a host'),
    "host": Key(TEXT, "login node, reached by ssh"),
    "user": Key(TEXT, "name on the login node"),
    "identity": Key(TEXT, "ssh's key file"),
    "remote_job_dir": Key(PATH, "folder for jobs on a file system that all nodes share"),
    "mounts": Key(TEXTS, '"host:container" pairs of folders'),
    "lustre_mount": Key(TEXT, "one more of mounts"),
    "setup_lines": Key(SHELL_LINES, "shell at the start of the job, on its first node"),
    "build_partition": Key(WORD, "partition of the job that imports a container image; else cpu_partition, else partition"),
    "build_time": Key(TIME, "its time limit; an hour where it is not set"),
    "build_image": Key(TEXT, "image of the importing job", is_idle=True),
    "build_cache_dir": Key(PATH, "enroot's cache"),
    "build_include_gpus": Key(FLAG, "whether it asks for GPUs"),
    "build_gpus_per_node": Key(NUMBER, "how many"),
}

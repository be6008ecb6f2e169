"""What is known of one key of a profile, the keys that executors have in common, and the tables of all of them by name.

An executor is a folder in steps/executors/ that has keys.py with its table KEYS, and executor.py; its name stands here.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from nemotron_dpo.steps.profiles.kinds import COMMAND, COUNT, NUMBER, PATH, SHELL_LINES, TEXT, VARIABLES, Kind

EXECUTORS = ("local", "slurm", "lepton", "dgxcloud")


@dataclass(frozen=True)
class Key:
    """One key: the kind of its value, and what it says.

    `sets` is the key of a config's cluster section whose value it gives. Where several keys of a table set the same, the first
    that has a value counts, and one that `yields` comes after all others, wherever it was set. `config_wins`: what a config's
    run.env says of it wins over the profile, since the recipe knows what it needs. `is_idle`: it is known and has no effect.
    """

    kind: Kind
    meaning: str
    sets: Literal["gpus_per_node", "num_nodes"] | None = None
    yields: bool = False
    config_wins: bool = False
    is_idle: bool = False


KeyTable = Mapping[str, Key]

COMMON: KeyTable = {
    "executor": Key(TEXT, "where runs go: local, slurm, lepton or dgxcloud"),
    "extends": Key(TEXT, "another profile, whose keys count where this one has none"),
    "env_vars": Key(VARIABLES, "environment variables of the stages"),
    "nodes": Key(NUMBER, "machines; cluster.num_nodes", sets="num_nodes", config_wins=True),
    "nproc_per_node": Key(NUMBER, "processes a node; cluster.gpus_per_node", sets="gpus_per_node", config_wins=True),
    "gpus_per_node": Key(COUNT, "GPUs a node, and processes where nothing else says", sets="gpus_per_node", config_wins=True),
    "gpu_memory_gb": Key(NUMBER, "memory of one GPU in GB, for the estimate of a dry run"),
}
# Of executors that run elsewhere.
ELSEWHERE: KeyTable = {
    "container_image": Key(TEXT, "image that the stages run in", config_wins=True),
    "workspace": Key(PATH, "a checkout there, with its .venv made"),
    "startup_commands": Key(SHELL_LINES, "shell before each stage on each node, in the container"),
    "run_command": Key(COMMAND, "wraps each stage's command; {config} is the path of train.yaml"),
}


@functools.cache
def key_tables() -> Mapping[str, KeyTable]:
    """Executor -> the table of its keys, as its folder has it."""
    return {name: import_module(f"nemotron_dpo.steps.executors.{name}.keys").KEYS for name in EXECUTORS}


def known_key(name: str) -> Key | None:
    """What some executor knows of the key."""
    return next((table[name] for table in key_tables().values() if name in table), None)


def nearest_key(name: str) -> str | None:
    """The remedy for a key that no executor has."""
    known = {key for table in key_tables().values() for key in table}
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None

"""What a config says of where it runs: its section run.env, in the keys of a profile. No stage reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.config.layer import ConfigLayer, origin, place
from nemotron_dpo.config.merge import resolve_layers
from nemotron_dpo.config.read_layers import read_layers
from nemotron_dpo.config.tree import Tree
from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class RunEnv:
    """`settings` are those of run.env; `origins` maps their dotted keys to places, `typed` are those that overrides set.

    `name` is run.name, what people call the job.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    name: str | None = None


def load_run_env(config: str | Path | None, overrides: Sequence[str], *, shipped: Path | None = None) -> RunEnv:
    """run.env of `config`, the files it names under `defaults`, and `overrides`. Raises UserError where it is no mapping."""
    layers = read_layers(config, overrides, shipped=shipped)
    if not any(isinstance(layer.plain, dict) and "run" in layer.plain for layer in layers):
        return RunEnv()
    tree = resolve_layers(layers)
    settings, name = split_run_env(tree)[1], run_name(tree)
    if not isinstance(settings, dict):
        source, line = origin("run.env", layers)
        raise UserError(f"is {settings!r} where a mapping is due", source=source, line=line, field="run.env")
    typed = [layer for layer in layers if not layer.is_file]
    places = {key: _place(f"run.env.{key}", layers) for key in leaves(settings)}
    return RunEnv(
        settings,
        places,
        frozenset(key for key in places if any(_sets(layer.plain, f"run.env.{key}") for layer in typed)),
        name,
    )


def split_run_env(tree: Tree) -> tuple[Tree, Any]:
    """`tree` without run.name and its section run.env, and that section."""
    run = tree.get("run")
    if not isinstance(run, dict) or not run.keys() & {"env", "name"}:
        return tree, {}
    rest = {key: value for key, value in run.items() if key not in ("env", "name")}
    others = {key: value for key, value in tree.items() if key != "run"}
    return others | ({"run": rest} if rest else {}), run.get("env", {})


def run_name(tree: Tree) -> str | None:
    """run.name of `tree`, None where it has none. Raises UserError for one that cannot be part of a folder's name."""
    run = tree.get("run")
    name = run.get("name") if isinstance(run, dict) else None
    return None if name is None else checked_name(str(name), "run.name")


def checked_name(name: str, what: str) -> str:
    """`name`, which is given by `what`. Raises UserError (usage) where it cannot be part of a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,99}", name):
        remedy = "up to 100 letters, digits, _ . + = , - and a letter or digit first"
        raise UserError("is no name for a job", source=f"{what}={name}", remedy=remedy, usage=True)
    return name


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted key of every value that is no mapping, or an empty one."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _place(key: str, layers: Sequence[ConfigLayer]) -> str:
    """Where the last layer sets `key`, else the nearest section above it."""
    found = next((where for layer in reversed(layers) if (where := place(layer, key, changed=False))), None)
    source, line = origin(key, layers)
    return found or (f"{source}" if line is None else f"{source}:{line}")


def _sets(tree: Any, key: str) -> bool:
    """Whether `tree` sets `key` or something under or above it as a whole."""
    for part in key.split("."):
        if not isinstance(tree, dict):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True

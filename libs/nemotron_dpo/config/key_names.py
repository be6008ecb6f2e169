"""Dotted keys by name: those of our schema, those of NeMo-RL's, those that a tree has, and what is like an unknown one."""

from __future__ import annotations

import difflib
import functools
from dataclasses import fields, is_dataclass
from typing import Any

from nemotron_dpo.config.data_spellings import HELD_OUT_KEYS
from nemotron_dpo.config.dpo import is_key
from nemotron_dpo.config.foreign_keys import NO_MEANING, REFUSED
from nemotron_dpo.config.schema import DataConfig, RunConfig
from nemotron_dpo.config.theirs.counterparts import counterpart
from nemotron_dpo.config.tree import Tree
from nemotron_dpo.config.values import kinds_of


def known_keys(cls: Any = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the dataclass `cls` and its sections, in the order of their fields."""
    keys: list[str] = []
    hints = kinds_of(cls)
    for name, hint in ((item.name, hints[item.name]) for item in fields(cls) if is_key(item)):
        nested = is_dataclass(hint)
        keys += known_keys(hint, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
        if cls is DataConfig and name == "validation":
            keys += [f"{prefix}{name}.{key}" for key in HELD_OUT_KEYS]
    return keys


@functools.cache
def foreign_keys() -> frozenset[str]:
    """Every dotted key that NeMo-RL's schema has and ours does not; each stands for its whole subtree."""
    return frozenset({*NO_MEANING, *(refused.key for refused in REFUSED)})


def nearest(key: str) -> str:
    """The remedy for the unknown `key`, which suggests the most similar known key.

    It is the counterpart of a key of TRL, Axolotl or LLaMA-Factory; else a similar key of the same section, a key of another
    section with the same last part, or any similar key.
    """
    if (theirs := counterpart(key)) and key.rpartition(".")[2] not in {k.rpartition(".")[2] for k in known_keys()}:
        return theirs
    section, _, leaf = key.rpartition(".")
    known = sorted({*known_keys(), *foreign_keys()})
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)
    if close:
        return f"did you mean {beside[close[0]]}?"
    elsewhere = [k for k in known_keys() if k.rpartition(".")[2] == leaf]
    near = elsewhere or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"the sections are {', '.join(kinds_of(RunConfig))}"


def leaves(tree: Tree, prefix: str = "") -> list[str]:
    """The dotted keys in `tree`. A section that `foreign_keys` has whole is one key; one of ours that is empty is none."""
    keys: list[str] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and foreign_prefix(key) is None:
            keys += leaves(value, f"{key}.")
        elif not (value == {} and _is_section(key)):
            keys.append(key)
    return keys


def _is_section(key: str) -> bool:
    return any(known.startswith(f"{key}.") for known in (*known_keys(), *foreign_keys()))


def foreign_prefix(key: str) -> str | None:
    """The key of `foreign_keys` that `key` is or lies in, if any."""
    parts = key.split(".")
    prefixes = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in foreign_keys()), None)

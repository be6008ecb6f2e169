"""How a run stands, by the run.json of its folder: what it said last, and whether it can still say anything."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo import machine_errors, plain_files, processes
from nemotron_dpo.errors import UserError

FILE = "run.json"


def read_facts(run: Path) -> Mapping[str, Any]:
    """What run.json says; empty where there is none, as in runs of earlier versions."""
    return read_json(run / FILE)


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is none, or no such plain file. Raises OSError where it cannot be read."""
    try:
        tree = orjson.loads(_read(path))
    except (*machine_errors.NOT_THERE, orjson.JSONDecodeError, UserError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _read(path: Path) -> bytes:
    """The content of a file that may be replaced meanwhile: a file server then gives what has the name now, asked again."""
    try:
        return _read_plain(path)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return _read_plain(path)


def _read_plain(path: Path) -> bytes:
    plain_files.refuse_others(path)
    return path.read_bytes()


def state_of(facts: Mapping[str, Any]) -> str:
    """`running`, `done`, `stopped`, `failed`, `killed`, or `unknown` where nothing says it."""
    said = str(facts.get("status", "unknown"))
    if said == "failed" and facts.get("reason") == "KeyboardInterrupt":  # so versions before this one called Ctrl-C
        return "stopped"
    return "killed" if said == "running" and not is_alive(facts) else said


def is_alive(facts: Mapping[str, Any]) -> bool:
    """Whether the process that wrote `facts` (what `processes.this_one` says) may still live; of others nobody here knows."""
    return processes.may_live(facts)


def how_extended(facts: Mapping[str, Any]) -> str:
    """What else than its command makes a run again that had ended and was made longer; empty where that says it all.

    A schedule follows the length of the run, so the longer run trained from its first step would end elsewhere.
    """
    earlier, last = facts.get("earlier"), facts.get("step")
    before = [one for one in earlier if isinstance(one, Mapping)] if isinstance(earlier, list) else []
    steps = [one.get("step") for one in before if one.get("status") == "done"]
    ends = [str(step) for step in steps if isinstance(step, int) and isinstance(last, int) and step < last]
    if not ends:
        return ""
    shorter = ", then with ".join(f"dpo.max_num_steps={step}" for step in ends)
    return f"The run had ended after step {' and '.join(ends)} and was extended: to make it again, run it with {shorter} first."

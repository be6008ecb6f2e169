"""Convert a config of theirs: every key of it counts, has no counterpart, is refused, is left out on request or is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.config.theirs import meanings, surroundings
from nemotron_dpo.config.theirs.given import Given, Refusal, Written
from nemotron_dpo.config.theirs.meanings import TheirRun
from nemotron_dpo.config.theirs.objective import objective
from nemotron_dpo.config.theirs.programs import given_of, program_of
from nemotron_dpo.config.theirs.surroundings import Data
from nemotron_dpo.config.theirs.tables import COUNTS, IDLE, OWN, REFUSED


@dataclass(frozen=True)
class Choices:
    """What a user says besides the config; `ignore` names keys of it that are to count for nothing."""

    processes: int | None = None
    num_pairs: int | None = None
    ignore: tuple[str, ...] = ()
    train_data: str | None = None
    validation_data: str | None = None
    program: str | None = None


@dataclass(frozen=True)
class Converted:
    """`program` and `written` are the result; the others map their keys to what is to say about them.

    idle: keys without counterpart, with the reason. differs: keys that count, but not in all as there. unknown: keys that no
    table has. Where there are `refusals`, the result must not be used.
    """

    program: str
    written: list[Written]
    refusals: list[Refusal]
    idle: Mapping[str, str] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def convert(tree: dict[str, Any], choices: Choices) -> Converted:
    """`tree`, a config as YAML gives it, in our keys. Raises UserError where two of its keys contradict each other."""
    program, run = choices.program or program_of(tree), TheirRun(choices.processes, choices.num_pairs)
    given = given_of(tree, program, list(choices.ignore), run)
    _refuse(given)
    _fill(given, run, Data(choices.train_data, choices.validation_data))
    own = OWN.get(program, {})
    known = {*COUNTS, *IDLE, *REFUSED, *own}
    idle = {given.name(key): IDLE[key] for key in given.values if key in IDLE}
    unknown = tuple(given.name(key) for key in given.values if key not in known)
    ignored = tuple(key for key in tree if key in choices.ignore)
    return Converted(program, given.written, given.refusals, idle, given.differs, unknown, ignored)


def _fill(given: Given, run: TheirRun, data: Data) -> None:
    meanings.model(given, run)
    pairs = meanings.batch(given, run)
    steps = meanings.length(given, run, pairs)
    meanings.schedule(given, steps)
    meanings.optimizer(given)
    meanings.precision(given)
    meanings.adapters(given)
    objective(given)
    surroundings.validation(given, run, pairs, steps, data)
    surroundings.checkpoints(given, run, pairs, steps)
    surroundings.data(given, data)
    surroundings.trackers(given)


def _refuse(given: Given) -> None:
    for key, refused in REFUSED.items():
        value = given.values.get(key)
        if value is not None and value not in refused.taken:
            given.refuse(key, f"is {value}, which {refused.why} and is not built", refused.remedy)

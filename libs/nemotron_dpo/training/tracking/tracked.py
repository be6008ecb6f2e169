"""What a tracker is given, and what it must do. Its file in training/sinks/ has `start(run)`, which its own process calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nemotron_dpo.training.record import Record

# The split of a record of the machine's figures, whose step is seconds since the run began; their names start with it.
MACHINE = "ray"
# Beside each record of the machine: its step again, which Weights & Biases takes for the axis of all of them.
MACHINE_STEP = f"{MACHINE}/ray_step"


class Tracking(Protocol):
    """A tracker's run, open. What it raises ends it, not the training."""

    def write(self, record: Record) -> None:
        """Take one record: a step's, a validation's, or one of the MACHINE."""
        ...

    def close(self, *, failed: bool) -> None:
        """Send what was not sent, and say how the run ended."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is started for.

    folder: where it may write; it exists. name: of the run, where the settings have none. settings: what the config has for
    it. config: the run's whole configuration without secrets. lineage: digests of what the run is made from. done: steps that
    were taken before. known: what an earlier process of this run had it `remember`; empty where its run is new.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    lineage: Mapping[str, str]
    done: int = 0
    known: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], object] = lambda line: None
    remember: Callable[[Mapping[str, Any]], object] = lambda known: None

    def given(self) -> dict[str, Any]:
        """The settings that say something."""
        return {name: value for name, value in self.settings.items() if value not in (None, [], ())}


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings and lists as one mapping by dotted key, as NeMo-RL flattens hyperparameters."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for name, value in parts:
        if isinstance(value, Mapping | list | tuple):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

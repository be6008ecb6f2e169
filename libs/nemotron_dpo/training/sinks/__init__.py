"""Where records go: metrics.jsonl first. Each module of this folder is one sink, and nothing else names it.

A module has `open_sink(run)`, which gives the sink, or None where `run` does not ask for it. It imports what it needs of other
libraries there, not above.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nemotron_dpo.training.record import Record


class Sink(Protocol):
    """Takes the records of a run in their order, on the first rank alone."""

    def write(self, record: Record) -> None:
        """Take one record; the loop waits meanwhile."""
        ...

    def sync(self) -> None:
        """Make what was written survive a crash of the machine, as the checkpoint does that is saved next."""
        ...

    def close(self) -> None:
        """Let go of what is held; called once, also where the run failed."""
        ...


@dataclass(frozen=True)
class RecordedRun:
    """What a sink is opened for.

    folder: the run folder. done: steps that were taken before; a sink goes on behind them and drops what came later.
    logger: the `logger.*` settings as plain values. say: tells the user one line.
    """

    folder: Path
    done: int = 0
    logger: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], object] = lambda line: None


@dataclass(frozen=True)
class Sinks:
    """Several sinks as one; without any, as on all ranks but the first, it takes records and does nothing."""

    members: Sequence[Sink] = ()

    def write(self, record: Record) -> None:
        """Hand `record` to each."""
        for sink in self.members:
            sink.write(record)

    def sync(self) -> None:
        """Sync each."""
        for sink in self.members:
            sink.sync()


@contextlib.contextmanager
def opened(run: RecordedRun | None) -> Iterator[Sinks]:
    """All sinks that `run` asks for, open for the block; None, on ranks that record nothing, opens none."""
    with contextlib.ExitStack() as stack:
        members: list[Sink] = []
        for open_sink in _openers() if run is not None else ():
            sink = open_sink(run)
            if sink is not None:
                stack.callback(sink.close)
                members.append(sink)
        yield Sinks(members)


def _openers() -> Iterator[Callable[[RecordedRun | None], Sink | None]]:
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        yield importlib.import_module(f"{__name__}.{name}").open_sink

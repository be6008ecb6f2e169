"""Where records go: metrics.jsonl first. Each module of this folder is one sink, and nothing else names it.

A module has one of two functions. `open_sink(run)` gives a sink that the loop waits for. `start(run)` opens a tracker, which
works in a process of its own (see `training.tracking`): it is asked for by `logger.NAME_enabled` and given what `logger.NAME`
holds, where NAME is the module's; so are called the library that it needs and the extra of pyproject.toml that brings it. A
module imports other libraries inside these functions, not above.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from nemotron_dpo.errors import UserError
from nemotron_dpo.training.record import Record


class Sink(Protocol):
    """Takes the records of a run in their order, on the first rank alone."""

    def write(self, record: Record) -> None:
        """Take one record; the loop waits meanwhile."""
        ...

    def sync(self) -> None:
        """Make what was written survive a crash of the machine, as the checkpoint does that is saved next."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Let go of what is held; called once, also where the run `failed` or was interrupted."""
        ...


@dataclass(frozen=True)
class RecordedRun:
    """What a sink is opened for.

    folder: the run folder. done: steps that were taken before; a sink goes on behind them and drops what came later.
    logger: the `logger.*` settings as plain values. config: the whole configuration, without secrets. lineage: digests of what
    the run is made from. facts: what else run.json says of it. say: tells the user one line. stopped_by: what ended the run
    early, None where nothing has. alarms: what the guards said so far.
    """

    folder: Path
    done: int = 0
    logger: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], object] = lambda line: None
    facts: Mapping[str, Any] = field(default_factory=dict)
    stopped_by: Callable[[], str | None] = lambda: None
    alarms: Callable[[], Sequence[Mapping[str, Any]]] = tuple


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
        for sink in _open(run) if run is not None else ():
            stack.push(functools.partial(_close, sink))
            members.append(sink)
        yield Sinks(members)


def check_trackers(logger: Mapping[str, Any]) -> None:
    """Raise UserError where libraries are missing that trackers need which `logger`, the `logger.*` settings, asks for."""
    missing = [name for name in _asked_for(logger) if not _is_installed(name)]
    if missing:
        first, *others = missing
        also = f" (nor is {' or '.join(others)}, which is asked for too)" if others else ""
        remedy = f"pip install 'nemotron-dpo[{','.join(missing)}]', or set {'them' if others else 'it'} to false"
        raise UserError(
            f"is true, and the library {first} is not installed{also}", field=f"logger.{first}_enabled", remedy=remedy
        )


def _is_installed(library: str) -> bool:
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None  # a folder of that name, as wandb makes one, is no library


def _asked_for(logger: Mapping[str, Any]) -> list[str]:
    """The trackers that `logger` asks for."""
    return [name for name, module in _modules() if hasattr(module, "start") and logger.get(f"{name}_enabled")]


def _open(run: RecordedRun) -> Iterator[Sink]:
    """Open what `run` asks for, one after the other: what is open already must be closed where the next cannot be."""
    for _, module in _modules():
        sink = module.open_sink(run) if hasattr(module, "open_sink") else None
        if sink is not None:
            yield sink
    if names := _asked_for(run.logger):
        from nemotron_dpo.training.tracking.trackers import open_trackers

        facts = {"config": dict(run.config), "lineage": dict(run.lineage)}
        yield open_trackers(names, run.folder, run.logger, run.done, facts, run.say, lambda: bool(run.stopped_by()))


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        yield name, importlib.import_module(f"{__name__}.{name}")


def _close(sink: Sink, kind: type[BaseException] | None, *_: object) -> None:
    sink.close(failed=kind is not None)

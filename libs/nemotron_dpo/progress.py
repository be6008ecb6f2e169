"""What a stage is at, said while it is at it: on a terminal one line that is drawn anew, elsewhere a line every few seconds.

Lines that stay, as warnings, are written through `write_line`, which puts them above the line that is drawn anew.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemotron_dpo import standard_streams

# Plain lines come at least so many seconds apart. In a long run they are rarer: it takes a tenth of its time to the next.
FEWEST_SECONDS, MOST_SECONDS = 5.0, 60.0
_BAR = "{desc}: {n:.0f} of {total:.0f} {unit}, {percentage:.0f} % |{bar:12}| {elapsed}<{remaining}{postfix}"
_COUNT = "{desc}: {n:.0f} {unit} {elapsed}{postfix}"


class Progress(Protocol):
    """Hears of the work of one stage."""

    def phase(self, what: str) -> None:
        """What is done from now on, such as `saving`; "" for the work that is counted."""
        ...

    def advance(self, amount: float, facts: str = "") -> None:
        """So much more of the work is done; `facts` say how it went."""
        ...


@dataclass(frozen=True)
class Work:
    """The work of a stage: `total` of `unit`, None where that is not known, of which `done` was done before it started.

    Where it is `announced`, as what loads a model is, a plain line says so before it begins and one after the first of it.
    """

    label: str
    unit: str
    total: float | None = None
    done: float = 0
    announced: bool = True

    @property
    def units(self) -> str:
        """The unit, of several."""
        return self.unit if self.unit in ("MB", "kB") else f"{self.unit}s"


@dataclass(frozen=True)
class Silent:
    """Says nothing: on ranks but the first."""

    def phase(self, what: str) -> None:
        """Nothing."""

    def advance(self, amount: float, facts: str = "") -> None:
        """Nothing."""


@dataclass
class Lines:
    """A line whenever enough time has passed."""

    work: Work
    say: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    done: float = 0
    _started: float = field(init=False)
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self._next = self.clock()
        if self.work.announced:
            self.say(self._announcement())
        else:
            self._next += FEWEST_SECONDS

    def phase(self, what: str) -> None:
        """Nothing: what is saved or validated says so itself."""

    def advance(self, amount: float, facts: str = "") -> None:
        """See the class."""
        self.done += amount
        now = self.clock()
        if now < self._next or self.done < 0.5:  # "0 of 320" says nothing
            return
        elapsed = now - self._started
        self._next = now + min(MOST_SECONDS, max(FEWEST_SECONDS, elapsed / 10))
        self.say(", ".join(part for part in (self._place(), facts, self._left(elapsed)) if part))

    def _announcement(self) -> str:
        work = self.work
        amount = "" if work.total is None else f" {work.total:.0f} {work.units if work.total != 1 else work.unit}"
        return f"{work.label}{amount}" + (f", {work.done:.0f} of them done" if work.done else "")

    def _place(self) -> str:
        work, reached = self.work, self.work.done + self.done
        of = f" of {work.total:.0f}" if work.total is not None else ""
        return f"{work.label}: {reached:.0f}{of} {work.units}"

    def _left(self, elapsed: float) -> str:
        left = 0 if self.work.total is None else self.work.total - self.work.done - self.done
        return f"{duration(elapsed / self.done * left)} left" if left > 0 and self.done > 0 else ""


class Bar:
    """The line that is drawn anew, by tqdm."""

    def __init__(self, work: Work) -> None:
        from tqdm import tqdm

        self._work = work
        self._bar = tqdm(
            total=work.total,
            initial=work.done,  # type: ignore[arg-type] - tqdm counts in floats as well
            unit=work.units,
            desc=work.label,
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format=_COUNT if work.total is None else _BAR,
            mininterval=0.2,
            leave=False,  # the program's line of facts stays in its place
        )
        atexit.register(self._bar.close)

    def phase(self, what: str) -> None:
        """Show it at once: what follows may take long."""
        self._bar.set_description_str(f"{self._work.label} ({what})" if what else self._work.label)

    def advance(self, amount: float, facts: str = "") -> None:
        """See the protocol."""
        self._bar.set_postfix_str(facts, refresh=False)
        self._bar.update(amount)


def shown(work: Work, say: Callable[[str], object]) -> Progress:
    """How this process shows `work`; `say` writes a plain line."""
    return Bar(work) if _draws() else Lines(work, say)


def write_line(text: str) -> None:
    """Write a line to stderr that stays. Work goes on where nobody reads stderr any more; its records are files."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with tqdm.external_write_mode(file=sys.stderr) if tqdm else contextlib.nullcontext():
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            standard_streams.detach(sys.stderr)


def duration(seconds: float) -> str:
    """As a person says it: `42 s`, `4 min 10 s`, `3 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _draws() -> bool:
    """Whether a line can be drawn anew. Programs that are chained by pipes share one terminal, where only whole lines do not
    overwrite each other."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or _is_pipe(0) or _is_pipe(1):
        return False
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False

"""The signals that end a program: raised, so that `with` blocks clean up, or noted, where a step is to be finished first."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from nemotron_dpo.cli.speech import say

HUNG_UP = 128 + signal.SIGHUP  # the exit status, as shells give it


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal, raised in the main thread so that `with` blocks clean up on the way out."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(signum)
        self.status = 128 + signum


def raise_terminated() -> None:
    """Have SIGTERM, and SIGHUP where it is not ignored, raised as Terminated from now on."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it, and it stays ignored
        signal.signal(signal.SIGHUP, _raise_terminated)


def _raise_terminated(signum: int, frame: object) -> NoReturn:
    raise Terminated(signum)


# torchrun hands on the Ctrl-C that the terminal gave to all processes already: what comes so soon after is the same one.
_SAME_CTRL_C_SECONDS = 1.0


@contextlib.contextmanager
def signals_noted(program: str) -> Iterator[Callable[[], int]]:
    """Inside the block SIGTERM, Ctrl-C, and SIGHUP where it is not ignored, are only noted. A second Ctrl-C ends at once.

    The yielded function returns the number of the first that came, 0 before.
    """
    came: list[int] = []
    interrupted: list[float] = []

    def note(signum: int, frame: object) -> None:
        if signum == signal.SIGINT:
            if interrupted and time.monotonic() - interrupted[0] > _SAME_CTRL_C_SECONDS:
                raise KeyboardInterrupt
            if not interrupted:
                say(program, "interrupted: ends with a checkpoint once this step is done; Ctrl-C again ends at once")
            interrupted.append(time.monotonic())
        came.append(signum)

    noted = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""torchrun as our programs are started by it: its own options, rendezvous and agent, and at most one line where a job fails.

torchrun itself answers a signal or a failed process with its own traceback, always ends with status 1, and kills processes
that take longer than 30 s to save. Here a signal goes on to the processes, which decide themselves when they are done, and the
status is that of the process that failed first. Where this process is killed, the others get SIGTERM (Linux). What a process
said is not said again; one that was killed is named. The processes share this machine's cores evenly, unless OMP_NUM_THREADS
says otherwise.

Tried with torch 2.13; source of what is called: torch.distributed.run and torch.distributed.elastic.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from nemotron_dpo import parent
from nemotron_dpo.errors import UserError

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# of processes that others brought down: the agent, a person or a scheduler ended them
_ENDED = tuple(128 + number for number in _PASSED_ON)


@dataclass(frozen=True)
class Ended:
    """The exit status of a job, and what of its end no process could say itself; empty where there is nothing."""

    status: int
    why: str = ""


def run(arguments: Sequence[str]) -> Ended:
    """Start the processes that torchrun's `arguments` describe and wait for them.

    Raises UserError where the processes of several hosts do not meet, and (usage) where torchrun knows no such option.
    """
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    _silence()
    parser = torchrun.get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign] - or it would write its whole usage
    job = parser.parse_args(["--signals-to-handle", "SIGQUIT", *arguments])
    if job.standalone and job.local_addr is None:
        job.local_addr = "127.0.0.1"  # or the processes get this machine's name, and wait for ever where it does not resolve
    processes = torchrun.determine_local_world_size(job.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    os.environ.update(parent.followed())
    try:
        with _signals_passed_on():
            torchrun.run(job)
    except ChildFailedError as failed:
        return _ended(failed.failures)
    except (RendezvousError, DistError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the processes did not meet: {message}", remedy="check --rdzv-endpoint and the network") from error
    return Ended(0)


def _refuse(message: str) -> NoReturn:
    raise UserError(message, remedy="'torchrun --help' lists the options", usage=True)


def _silence() -> None:
    """Leave out what the agent logs of a failure, which is what we say or the processes did; LOGLEVEL brings it back."""
    if "LOGLEVEL" not in os.environ:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[None]:
    """In the block signals go on to the processes, as often as they come; one that comes before them ends the block."""
    handled = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _pass_on) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, frame: object) -> None:
    import psutil

    processes = psutil.Process().children()
    if not processes:
        raise SystemExit(128 + number)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _ended(failures: Mapping[int, Any]) -> Ended:
    """The end of the process that failed first: of those seen at once one that was killed, then one with words of its own."""
    rank = min(failures, key=lambda rank: (_kind(failures[rank].exitcode), failures[rank].timestamp, rank))
    number = failures[rank].exitcode
    if _kind(number) != _KILLED:
        return Ended(_shell_status(number))
    hint = ": out of memory?" if -number == signal.SIGKILL else ""
    who = f"rank {rank} (process {failures[rank].pid} on {socket.gethostname()})"
    return Ended(_shell_status(number), f"{who} was killed by {signal.Signals(-number).name}{hint}")


_KILLED, _SPOKE, _WAS_ENDED = range(3)


def _kind(exitcode: int) -> int:
    if _shell_status(exitcode) in _ENDED:
        return _WAS_ENDED
    return _KILLED if exitcode < 0 else _SPOKE


def _shell_status(exitcode: int) -> int:
    """The exit status as a shell has it, of one as subprocess has it."""
    return exitcode if exitcode >= 0 else 128 - exitcode

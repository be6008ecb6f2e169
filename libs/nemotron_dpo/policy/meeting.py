"""The meeting of the processes of a job, from which on they exchange tensors.

torch's own rendezvous waits in C++ without a message, and Python handles no signal meanwhile. So for a job that torchrun did
not start, the connection is made in a thread of its own. Under torchrun all processes are there already, and torchrun watches
them. But torchrun names the machine by its host name, which may not resolve, or may resolve to another machine.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Thread

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage] - torch exports them without saying so

from nemotron_dpo import launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import gloo_devices
from nemotron_dpo.policy.device import device

_TIMEOUT = timedelta(minutes=30)
_SILENT_SECONDS = 2.0
_PAUSE_SECONDS = 0.1
_KEY = "nemotron_dpo_present"


def join(say: Callable[[str], object]) -> None:
    """Make torch's group of all processes of the job: NCCL on GPUs, gloo on CPUs. A process alone has one of its own.

    `say` gets a line on what is waited for. Raises UserError where the processes cannot meet.
    """
    backend = "nccl" if device().type == "cuda" else "gloo"
    if backend == "gloo":
        gloo_devices.share()
    if launcher.job_size() == 1:
        _be_alone(backend)
    elif launcher.under_torchrun():
        keep_to_this_machine()
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=meet(say), rank=launcher.rank(), world_size=launcher.job_size())


def _be_alone(backend: str) -> None:
    try:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    except RuntimeError as error:
        if "Unable to find" not in str(error):
            raise
        remedy = "bring it up: ip link set lo up"
        raise UserError("there is no loopback interface, which gloo asks for", remedy=remedy) from None


def keep_to_this_machine() -> None:
    """Let a torchrun job that is on one machine meet on the loopback interface, if the job's port can be reached there.

    Changes the environment: sets MASTER_ADDR and, if it is not set, GLOO_SOCKET_IFNAME.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return
    _, port = launcher.master_address()
    for address in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
            os.environ["MASTER_ADDR"] = address
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            return


def meet(say: Callable[[str], object]) -> Store:
    """Wait until all processes of this job are there, and return their store. `say` gets a line on what is waited for.

    Raises UserError if the environment does not name the address, if no connection to it can be made, if process 0 goes away,
    and after 30 minutes.
    """
    (host, port), rank, size = launcher.master_address(), launcher.rank(), launcher.job_size()
    place = f"{host}:{port} (WORLD_SIZE={size})"
    waiting = _Waiting(say)
    store = _connected(host, port, rank, place, waiting)
    try:
        present = store.add(_KEY, 1)
        while present < size:
            waiting.pause(f"waits for {size - present} of {size} processes at {place}")
            present = store.add(_KEY, 0)
    except RuntimeError:
        raise UserError(f"process 0 of the job at {place} has gone") from None
    return PrefixStore("default_pg", store)


def _connected(host: str, port: int, rank: int, place: str, waiting: _Waiting) -> Store:
    made: list[Store | Exception] = []

    def connect() -> None:
        try:
            made.append(TCPStore(host, port, is_master=rank == 0, timeout=_TIMEOUT, wait_for_workers=False))
        except Exception as error:
            made.append(error)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    while thread.is_alive():
        waiting.pause(f"waits for process 0 at {place}")
    if isinstance(made[0], Exception):
        reason = str(made[0]).splitlines()[0]
        raise UserError(f"cannot meet the other processes at {place}: {reason}", remedy="unset WORLD_SIZE if there are none")
    return made[0]


class _Waiting:
    """Short pauses, in which Python handles signals.

    After two seconds, `say` gets a line on what is waited for, and again whenever that line changes.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._started = time.monotonic()
        self._said = ""

    def pause(self, line: str) -> None:
        waited = time.monotonic() - self._started
        if waited > _TIMEOUT.total_seconds():
            raise UserError(f"{line}: gave up after {waited:.0f} s", remedy="unset WORLD_SIZE if there are none")
        if waited > _SILENT_SECONDS and line != self._said:
            self._said = line
            self._say(line)
        time.sleep(_PAUSE_SECONDS)

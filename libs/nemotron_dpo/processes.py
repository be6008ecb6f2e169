"""Which process wrote a file, told to whoever reads the file later, in another container or on another machine too.

A process id alone names another process in each container, and containers may share a host name: their machine's, or one that
they were all given. So a file has `host` and `pid` for people, and `process`, by which a program tells: the machine, the kernel
since its last start, the namespace of process ids, and when the process began.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

_HOST, _PID, _PROCESS = "host", "pid", "process"


@dataclass(frozen=True)
class _Place:
    """Where process ids mean the same: `machine` (empty where it has no name) and `kernel` as eight digits, and `space`."""

    machine: str
    kernel: str
    space: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.kernel}-{self.space}"


def this_one() -> dict[str, Any]:
    """This process, as a file names it."""
    pid = os.getpid()
    return {_HOST: socket.gethostname(), _PID: pid, _PROCESS: f"{_here()}-{_began(pid) or 0}"}


def may_live(facts: Mapping[str, Any]) -> bool:
    """Whether the process that `facts` of a file name may still live. False only where it is certain that it does not."""
    pid, (place, began) = facts.get(_PID), _read(facts.get(_PROCESS))
    if facts.get(_HOST) != socket.gethostname() or not isinstance(pid, int):
        return True
    here = _here()
    if place is not None and place != here:
        return not (place.machine and place.machine == here.machine and place.kernel != here.kernel)  # it was started again
    return _exists(pid) and (not began or _began(pid) in (None, began))


def is_ours(facts: Mapping[str, Any], pid: int) -> bool:
    """Whether `facts` of a file name the process that is `pid` to this one."""
    place, _ = _read(facts.get(_PROCESS))
    return facts.get(_PID) == pid and facts.get(_HOST) == socket.gethostname() and place in (None, _here())


def kernel() -> str:
    """Eight digits that name the running kernel, which knows all processes that hold its locks; containers share one."""
    return _digits("/proc/sys/kernel/random/boot_id") or sha256(platform.node().encode()).hexdigest()[:8]


def _here() -> _Place:
    try:
        space = os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")
    except OSError:  # no Linux
        space = ""
    return _Place(_digits("/etc/machine-id"), kernel(), space)


def _read(process: Any) -> tuple[_Place | None, int]:
    """Where the process is and when it began; (None, 0) where a file of an earlier version does not say it."""
    parts = process.split("-") if isinstance(process, str) else []
    if len(parts) != 4 or not parts[3].isdigit():
        return None, 0
    return _Place(*parts[:3]), int(parts[3])


def _digits(file: str) -> str:
    """Eight digits in place of what `file` holds, which may be a secret of the machine; empty where it holds nothing."""
    try:
        name = Path(file).read_bytes()
    except OSError:
        return ""
    return sha256(name).hexdigest()[:8] if name.strip() else ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _began(pid: int) -> int | None:
    """When the process began, in ticks since the start of the kernel; None where that cannot be seen."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None

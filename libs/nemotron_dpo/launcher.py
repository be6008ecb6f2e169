"""What the launcher says about this process: the number of processes in its job, and its own rank.

torchrun and other launchers set environment variables. The same variables may be there for other reasons: a container's
controller sets RANK for its nodes, or a shell still has them. So they are removed from the environment of a program that
joins no job, and where they do not tell of another process.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from nemotron_dpo.errors import UserError

_OF_A_PROCESS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK")
_OF_A_JOB = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_LAST_PORT = 65535
_TORCHRUN = "TORCHELASTIC_"
_TORCHRUN_OPTIONS = "PET_"  # PET_NNODES stands for torchrun's --nnodes, and so on


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def forget_other_jobs(*, joins_job: bool) -> None:
    """Remove the variables of other jobs from this process's environment, and so from that of the processes it starts.

    They stay under torchrun, and for a program that `joins_job` where they tell of several processes.
    """
    tells_of_others = os.environ.get("WORLD_SIZE", "") not in ("", "1")
    if not under_torchrun() and not (joins_job and tells_of_others):
        remove_job(os.environ)


def remove_job(environment: MutableMapping[str, str]) -> None:
    """Remove everything that a launcher sets, and the options that torchrun would read, from `environment`."""
    for name in list(environment):
        if name in (*_OF_A_PROCESS, *_OF_A_JOB) or name.startswith((_TORCHRUN, _TORCHRUN_OPTIONS)):
            del environment[name]


def job_size() -> int:
    """The number of processes in the job; 1 without a job. Raises UserError (usage) where WORLD_SIZE is no such number."""
    return _number("WORLD_SIZE", 1, least=1)


def rank() -> int:
    """This process's rank in the job, from 0. Raises UserError (usage) where RANK is missing or not below WORLD_SIZE."""
    number, size = _number("RANK", 0, least=0), job_size()
    if size > 1 and "RANK" not in os.environ:
        message = f"WORLD_SIZE says that this is one of {size} processes, and RANK does not say which"
        raise UserError(message, remedy="start it with torchrun, or unset WORLD_SIZE", usage=True)
    if number >= size > 1:
        raise UserError(f"RANK is {number} in a job of {size} processes (WORLD_SIZE)", remedy="unset them", usage=True)
    return number if size > 1 else 0


def check_job() -> None:
    """Raise UserError (usage) where the environment tells of a job but not this process's rank or where the ranks meet."""
    rank()
    if job_size() > 1 and not under_torchrun():
        master_address()


def refuse_job() -> None:
    """Raise UserError (usage) in a job of several processes: for programs whose ranks would all do the same work."""
    if (size := job_size()) > 1:
        raise UserError(f"works alone and was started as {size} processes", remedy="start it without torchrun", usage=True)


def is_first() -> bool:
    """True in a single process and on rank 0 of a job."""
    return _quiet_number("WORLD_SIZE", 1) == 1 or _quiet_number("RANK", 0) == 0


def is_first_of_node() -> bool:
    """True in a single process and on the first rank of each node."""
    return _quiet_number("WORLD_SIZE", 1) == 1 or _quiet_number("LOCAL_RANK", 0) == 0


def master_address() -> tuple[str, int]:
    """(host, port) where the processes of a job meet. Raises UserError (usage) where the environment does not say."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            message = f"WORLD_SIZE says that this is one of {job_size()} processes, and {name} does not say where they meet"
            raise UserError(message, remedy="start it with torchrun, or unset WORLD_SIZE", usage=True)
    if (port := _number("MASTER_PORT", 0, least=1)) > _LAST_PORT:
        raise UserError(f"MASTER_PORT is {port}, and the last port is {_LAST_PORT}", remedy="set a free port", usage=True)
    return os.environ["MASTER_ADDR"], port


def _number(name: str, otherwise: int, *, least: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"{name} is {text!r} where a number from {least} on is due", remedy=f"unset {name}", usage=True)
    return int(text)


def _quiet_number(name: str, otherwise: int) -> int:
    """As `_number`, for callers that must not fail: a value that is no number counts as `otherwise`."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise

"""End with the process that started this one: a run that is killed leaves no stage behind, and a launcher no rank.

Who starts one of our programs and is to be followed into its end says so in the program's environment. The kernel then sends
SIGTERM where that process is gone, however it ended, and the program ends as it does where SIGTERM comes from a person. Linux
alone has that; elsewhere the environment says nothing.
"""

from __future__ import annotations

import os
import signal
import sys

_VARIABLE = "NEMOTRON_DPO_PARENT"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def followed() -> dict[str, str]:
    """What the environment of a program says that is to end with this process."""
    return {_VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """From now on SIGTERM comes where the process that the environment names is gone, at once where it is gone already."""
    named = os.environ.pop(_VARIABLE, "")  # what this program starts looks after itself
    if not named.isdigit() or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(named) and not _lives(int(named)):  # another parent may be a wrapper that stands between
        os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True

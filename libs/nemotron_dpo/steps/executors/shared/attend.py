"""Stay with a submitted job until it ends, and cancel it on request. A job that was never queued leaves no local record."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.follow import Follower, ending

Say = Callable[[str], object]
# Slurm and Kubernetes give what they end 30 s by default.
_CANCEL_SECONDS = 45


class Unsure(UserError):
    """The submission had no answer: the job may or may not be queued."""


@contextlib.contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    """Remove the job folder `folder` where the block fails, unless the job may be queued all the same."""
    try:
        yield
    except Unsure:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def attend(follower: Follower, say: Say) -> int:
    """Follow the job to its end and return its exit status. Ctrl-C asks once whether to cancel it, SIGTERM cancels it."""
    while True:
        try:
            end = ending(follower.follow(), follower.job_id)
        except KeyboardInterrupt:
            if _wants_to_cancel(follower.job_id):
                _cancel(follower, say)
                raise
        except Exception:
            raise
        except BaseException:  # SIGTERM, as cli.run raises it
            _cancel(follower, say)
            raise
        else:
            if end.line:
                say(f"error: {end.line}; the log is {follower.log}")
            return end.status


def _wants_to_cancel(job_id: str) -> bool:
    """Ask the person at the terminal. A second Ctrl-C is a yes, and so is a terminal that is none."""
    if not sys.stdin.isatty():
        return True
    try:
        print(f"\nCancel job {job_id}? [Y/n] ", end="", file=sys.stderr, flush=True)
        return not sys.stdin.readline().strip().lower().startswith("n")
    except KeyboardInterrupt:
        return True


def _cancel(follower: Follower, say: Say) -> None:
    """Cancel the job, and show what it still says in the time that it has left to end."""
    follower.job.cancel()
    say(f"job {follower.job_id} is cancelled")
    brief = replace(follower, say=lambda line: None, patience_seconds=0)
    with contextlib.suppress(KeyboardInterrupt, UserError):
        brief.follow(until=time.monotonic() + _CANCEL_SECONDS)

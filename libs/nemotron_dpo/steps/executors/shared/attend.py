"""Stay with a job: follow it, and cancel it where the one who waits wants that. And leave no record of what was not queued."""

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
    """Nobody knows whether the job was queued."""


@contextlib.contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    """Remove the local record of a run that was not queued."""
    try:
        yield
    except Unsure:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def attend(follower: Follower, say: Say) -> int:
    """Follow to the end and return the exit status. Ctrl-C asks once whether to cancel, SIGTERM cancels."""
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
    """Ask where there is somebody to ask; a second Ctrl-C, or no answer at all, is a yes."""
    if not sys.stdin.isatty():
        return True
    try:
        print(f"\nCancel job {job_id}? [Y/n] ", end="", file=sys.stderr, flush=True)
        return not sys.stdin.readline().strip().lower().startswith("n")
    except KeyboardInterrupt:
        return True


def _cancel(follower: Follower, say: Say) -> None:
    """Cancel the job and show its last words, for as long as it is given."""
    follower.job.cancel()
    say(f"job {follower.job_id} is cancelled")
    brief = replace(follower, say=lambda line: None, patience_seconds=0)
    with contextlib.suppress(KeyboardInterrupt, UserError):
        brief.follow(until=time.monotonic() + _CANCEL_SECONDS)

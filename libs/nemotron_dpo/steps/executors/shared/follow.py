"""Follow a job to its end: show what its log gains, say what it waits for, and turn its last state into an exit status."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nemotron_dpo.errors import UserError

# A running job outlives a restart of its controller and a lost connection, so both are waited for.
PATIENCE_SECONDS = 300
# Reasons to wait that are not worth a line.
_USUAL = ("None", "Priority", "Prolog")
_ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip


class NoAnswer(UserError):
    """The cluster or platform did not answer. It may answer later."""


@dataclass(frozen=True)
class JobState:
    """What is said of a job, in Slurm's words: its state, why it is in it, and `code`:`signal` that it ended with."""

    name: str
    reason: str
    code: int
    signal: int

    @property
    def has_ended(self) -> bool:
        return self.name not in _ACTIVE


class Watched(Protocol):
    """A job somewhere else. `pause_seconds`: between two questions about it."""

    @property
    def pause_seconds(self) -> float: ...

    def state(self) -> JobState:
        """What is known of it now. Raises NoAnswer."""
        ...

    def read(self, offset: int) -> bytes:
        """What its log holds from `offset` on. Raises NoAnswer."""
        ...

    def cancel(self) -> None:
        """End it and everything it runs. Raises NoAnswer."""
        ...


@dataclass
class Follower:
    """Where one reader of a job's log is. `show` gets the log's bytes, `say` one line about the job."""

    job: Watched
    job_id: str
    log: str
    show: Callable[[bytes], object]
    say: Callable[[str], object]
    patience_seconds: float = PATIENCE_SECONDS
    offset: int = 0
    said: str = ""

    def follow(self, until: float = math.inf) -> JobState:
        """Return how the job ended, with all of its log shown; its state at time.monotonic() == `until` if it has not.

        Raises UserError where nobody answers.
        """
        silent_since: float | None = None
        while True:
            try:
                state = self.job.state()
                self._tell(state)
                self._read_on()
                silent_since = None
            except NoAnswer as error:
                silent_since = silent_since or time.monotonic()
                self._bear(error, time.monotonic() - silent_since)
            else:
                if state.has_ended or time.monotonic() >= until:
                    return state
            time.sleep(self.job.pause_seconds)

    def _read_on(self) -> None:
        content = self.job.read(self.offset)
        self.offset += len(content)
        if content:
            self.show(content)

    def _tell(self, state: JobState) -> None:
        """Say so when the job begins to wait for something else, and when it runs after that."""
        if state.name == "PENDING":
            waits = f"job {self.job_id} waits" + (f": {state.reason}" if state.reason not in _USUAL else "")
            if self.said != waits and (state.reason not in _USUAL or not self.said):
                self.said = waits
                self.say(waits)
        elif self.said:
            self.said = ""
            self.say(f"job {self.job_id} is {state.name.lower()}")

    def _bear(self, error: NoAnswer, seconds: float) -> None:
        if seconds >= self.patience_seconds:
            remedy = f"job {self.job_id} goes on without us; its log is {self.log}"
            raise UserError(f"no answer for {seconds:.0f} s ({error})", source=error.source, remedy=remedy) from None
        if self.said != str(error):
            self.said = str(error)
            self.say(f"warning: {error}: still trying")


@dataclass(frozen=True)
class Ending:
    """The exit status of whoever followed the job, and a line about what went wrong, if anything did."""

    status: int
    line: str | None


def ending(state: JobState, job_id: str) -> Ending:
    """What a job that ended as `state` means for whoever waits for it.

    Its own exit status where it has one; 128 + signal where it was killed; 124, as `timeout` says it, where time ran out.
    """
    status = state.code or (128 + state.signal if state.signal else 0)
    if state.name == "COMPLETED":
        return Ending(0, None)
    if state.name == "FAILED" and not state.signal:
        return Ending(status or 1, f"job {job_id} failed (exit {status or 1}); it said why above")
    if state.name == "CANCELLED":
        why = ": what it depends on failed" if state.reason == "DependencyNeverSatisfied" else ""
        return Ending(143, f"job {job_id} was cancelled{why}")
    if state.name in ("TIMEOUT", "DEADLINE"):
        return Ending(124, f"job {job_id} ran out of time: raise time in the profile")
    if state.name == "OUT_OF_MEMORY":
        return Ending(137, f"job {job_id} ran out of memory: raise mem in the profile, or make batches smaller")
    if state.signal and state.name == "FAILED":
        return Ending(status, f"job {job_id} was killed by signal {state.signal}; its last words are above")
    return Ending(status or 1, f"job {job_id} ended as {state.name.lower()}" + _because(state))


def _because(state: JobState) -> str:
    return f": {state.reason}" if state.reason not in _USUAL else ""

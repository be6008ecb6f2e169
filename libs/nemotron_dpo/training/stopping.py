"""Whether a run must end before its last step. The loop asks once a step, and all ranks agree on the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from signal import Signals

import psutil

from nemotron_dpo.policy import parallel


@dataclass
class Stop:
    """What may end a run early, and once it did, the `reason`; `has_diverged` where that is what the guards saw.

    save_by: the time.monotonic() by which a checkpoint must have been begun; a clock that is set anew does not move it.
    terminated: tells the number of the signal that asked for the end, 0 without one. The ranks agree on each, so what is
    None on one rank must be None on all.
    """

    save_by: float | None = None
    terminated: Callable[[], int] | None = None
    reason: str | None = None
    signal: int = 0
    has_diverged: bool = False

    def give_up(self, reason: str) -> None:
        """End the run before anything more is computed or saved: the policy is no longer what it should be."""
        self.reason, self.has_diverged = reason, True

    def due(self, step_seconds: float) -> bool:
        """Whether the run must not begin another step, which would take `step_seconds`. All ranks get the same answer."""
        if self.terminated is not None and (number := parallel.largest_of_ranks(self.terminated())):
            self.reason, self.signal = Signals(number).name, number
        elif self.save_by is not None and parallel.any_rank(time.monotonic() + step_seconds >= self.save_by):
            self.reason = "checkpointing.checkpoint_must_save_by"
        return self.reason is not None


def deadline(seconds: float | None) -> float | None:
    """The time.monotonic() at which this process will have run for `seconds`."""
    if seconds is None:
        return None
    age = time.time() - psutil.Process().create_time()  # which is counted back from now, so that no set clock is between
    return time.monotonic() - age + seconds

"""Whether a run must end before its last step: asked once a step, agreed on by all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from nemotron_dpo.policy import parallel


@dataclass
class Stop:
    """`save_by` is the time.time() by which a checkpoint must have been begun; `terminated` tells that SIGTERM came.

    What is None on one rank must be None on all, for the ranks vote. `reason` is set once the run must end.
    """

    save_by: float | None = None
    terminated: Callable[[], bool] | None = None
    reason: Literal["SIGTERM", "checkpointing.checkpoint_must_save_by"] | None = None

    def due(self, step_seconds: float) -> bool:
        """True on every rank where another step of `step_seconds` must not be begun."""
        if self.terminated is not None and parallel.any_rank(self.terminated()):
            self.reason = "SIGTERM"
        elif self.save_by is not None and parallel.any_rank(time.time() + step_seconds >= self.save_by):
            self.reason = "checkpointing.checkpoint_must_save_by"
        return self.reason is not None


def deadline(seconds: float | None) -> float | None:
    """The time.time() that is so long after the start of this process."""
    return None if seconds is None else psutil.Process().create_time() + seconds

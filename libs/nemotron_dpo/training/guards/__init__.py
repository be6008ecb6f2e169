"""What watches over a run: checks that end it, and detections that say what goes wrong, on which pairs, and what to try.

`invariants` has what must hold in any run. `detections` finds, from readings of steps alone, that a run diverges; `watch` says
each of these once, and once more where it has got worse.
"""

from nemotron_dpo.training.guards.invariants import STRATEGY, check_finite, check_first_step

__all__ = ["STRATEGY", "check_finite", "check_first_step"]

"""What one step leaves to the next, besides the policy and its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.weighted_sum import state_of, with_state
from nemotron_dpo.training.record import Totals


@dataclass(frozen=True)
class Carried:
    """The objective, with its state where it has one, and by how much a response's reward is uncertain, once measured."""

    objective: Objective
    reward_noise: float | None = None


def goes_on(objective: Objective, totals: Totals, source: Path) -> Carried:
    """What the steps left that `totals`, which `source` holds, tell of. Raises UserError for the state of another objective."""
    saved, wanted = sorted(totals.state), sorted(state_of(objective))
    if saved != wanted:
        found, own = (", ".join(names) or "none" for names in (saved, wanted))
        message = f"has {found} for the state of the objective, which is {own}"
        raise UserError(message, source=source, remedy="start in another folder")
    return Carried(with_state(objective, totals.state), totals.reward_noise)

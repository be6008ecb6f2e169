"""What an objective is given of a packed row, and what is refused before anything is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.objective.losses.sft import Sft
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.training.objective_loss import check_needs


@dataclass(frozen=True)
class Asking:
    """An objective that only has needs."""

    needs: Needs

    @property
    def terms(self) -> dict[str, FirstReading | None]:
        return {}

    def losses(self, pairs: object) -> PairLosses:
        raise NotImplementedError


def test_needs_that_training_does_not_meet_are_refused() -> None:
    values = frozenset({"entropy", "is_most_probable", "log_sum_squares"})
    for objective in (Dpo(0.1), Sft(), Asking(Needs()), Asking(Needs(token_values=values))):
        check_needs(objective)
    for needs in (
        Needs(token_values=frozenset({"entropy", "margin"})),
        Needs(row_rewards=True),
        Needs(whole_batch=True),
        Needs(reference=True, state=True),
    ):
        with pytest.raises(UserError, match="the objective needs more than training gives"):
            check_needs(Asking(needs))

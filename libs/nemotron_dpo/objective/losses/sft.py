"""Supervised fine-tuning on the chosen responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.objective.registry import Entry

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs


@dataclass(frozen=True)
class Sft:
    """-log pi(y_c|x) of each pair, as NeMo-RL has it; with `average`, divided by the number of the response's tokens."""

    average: bool = settings.setting(False, about="divide the log-prob of a response by the number of its tokens")

    needs = Needs(rejected=False)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        """The log-probs that the policy starts from are the data's affair."""
        return {"sft": None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        """See the class."""
        chosen = pairs.chosen
        loss = -chosen.logp / chosen.num_tokens if self.average else -chosen.logp
        return PairLosses(loss, {"sft": loss})


OBJECTIVES = (
    Entry(
        "sft",
        Sft,
        formula="-l_c",
        source="NeMo-RL",
        use="fine-tuning on the chosen responses, alone or beside a preference loss",
    ),
)

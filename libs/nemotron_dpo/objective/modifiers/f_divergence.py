"""Another divergence than the reverse KL between policy and reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nemotron_dpo.objective import settings
from nemotron_dpo.objective.formulas import capped_exp
from nemotron_dpo.objective.modified import Modifier
from nemotron_dpo.objective.protocol import FirstReading, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron_dpo.objective.inputs import LossInputs

_ALPHA = "alpha_divergence"


@dataclass(frozen=True)
class FDivergence:
    """f'(e^r) in place of r in d (Wang et al. 2023, arXiv 2309.16240), as TRL names and computes it.

    forward_kl: 1 - e^(-r). js_divergence: ln 2 + log sigmoid(r). alpha_divergence: (e^((alpha - 1) r) - 1) / (alpha - 1), which
    is forward_kl for alpha = 0 and the reverse KL for alpha = 1. The exponents end at 80, where the slope becomes 0; TRL does
    not end that of forward_kl. Rewards are log-ratios all the same, so that runs can be compared.
    """

    f_divergence: str = settings.setting(
        "reverse_kl",
        about="divergence from the reference, in place of the reverse KL",
        choices=("reverse_kl", "forward_kl", "js_divergence", _ALPHA),
    )
    f_alpha: float | None = settings.setting(None, about="alpha of alpha_divergence, 0.5 if not given")

    needs = Needs(reference=True)

    def __post_init__(self) -> None:
        if self.f_alpha is not None and self.f_divergence != _ALPHA:
            raise settings.SettingError("f_alpha", f"belongs to f_divergence={_ALPHA}, which is {self.f_divergence}")

    @property
    def is_neutral(self) -> bool:
        """The reverse KL is what objectives have without it."""
        return self.f_divergence == "reverse_kl" or (self.f_divergence == _ALPHA and self._alpha == 1)

    def first(self, reading: FirstReading) -> FirstReading:
        """All of them are 0 for r = 0, with the slope 1, or 1/2 of js_divergence."""
        return replace(reading, slope=reading.slope / 2) if self.f_divergence == "js_divergence" else reading

    def inputs(self, pairs: LossInputs) -> LossInputs:
        """See the class."""
        return pairs.each(lambda side: replace(side, given_score=self._score(side.log_ratio)))

    def weights(self, pairs: LossInputs) -> None:
        """None."""

    @property
    def _alpha(self) -> float:
        return 0.5 if self.f_alpha is None else self.f_alpha

    def _score(self, log_ratio: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        if self.f_divergence == "js_divergence":
            return math.log(2) + logsigmoid(log_ratio)
        power = -1.0 if self.f_divergence == "forward_kl" else self._alpha - 1
        return (capped_exp(power * log_ratio) - 1) / power


MODIFIER = Modifier(
    "f_divergence",
    FDivergence,
    formula="r becomes 1 - e^(-r) (forward_kl), ln 2 + log sigmoid(r) (js_divergence) or (e^((alpha-1) r) - 1) / (alpha-1)",
    source="arXiv 2309.16240",
)

"""Checks that stop a run: the first step's loss terms must have their known values, and all numbers must be finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.metric_names import loss_metric
from nemotron_dpo.objective.protocol import FirstReading
from nemotron_dpo.training.record import STATE

STRATEGY = "raise dpo.reference_policy_kl_penalty to 0.1-0.3 or lower the learning rate"


# How far the reading of a term with a slope of 1/2 or less may be off. The reference was scored in differently packed rows,
# where bfloat16 rounds log-probs differently.
_BOUND = {"float32": 1e-5, "bfloat16": 0.02}
# Of a loss itself, which is computed in float32 in any case: 16 roundings of 2^-24.
_ROUNDING = 2.0**-20


def check_first_step(metrics: Mapping[str, float], terms: Mapping[str, FirstReading | None], precision: str) -> None:
    """Raise UserError unless each term has the value it must have while policy and reference have the same weights.

    `terms` maps the name of a term, before its weight, to that value, or to None if it is not known. A rounding error in the
    rewards changes the term in proportion to its slope, so the bound is wider for a steeper term. A large value is rounded
    itself.
    """
    for name, first in terms.items():
        if first is None:
            continue
        reading = metrics[loss_metric(name)]
        bound = max(_BOUND[precision] * max(1.0, 2 * first.slope), _ROUNDING * abs(first.value))
        if not abs(reading - first.value) <= bound:
            raise UserError(
                f"{name} loss at step 1 is {reading:.6f} where the reference's own policy gives {first.formula} = "
                f"{first.value:.6f} (+- {bound:g} in {precision})",
                remedy="score the pairs again with ref-logprobs at the same --precision",
            )


def check_finite(step: int, metrics: Mapping[str, float], lines: Sequence[int]) -> None:
    """Raise UserError if the loss, the gradient norm or a state of the objective is not finite, or if `lines` is not empty.

    `lines` are the input lines of the pairs whose loss or gradient is not finite.
    """
    states = [name for name in metrics if name.startswith(STATE)]
    if not lines and all(math.isfinite(metrics.get(name, 0.0)) for name in ("loss", "grad_norm", *states)):
        return
    shown = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
    numbers = [f"gradient norm {metrics.get('grad_norm')}", *(f"{name} {metrics[name]}" for name in states)]
    blamed = f"the pairs of input lines {shown}" if lines else ", ".join(numbers)
    raise UserError(f"step {step}: loss {metrics['loss']} or its gradient is not finite: {blamed}", remedy=STRATEGY)

"""What must hold, or the run stops: ln 2 at step 1, and nothing NaN. Numbers and remedies are in the message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nemotron_dpo.errors import UserError

LN2 = math.log(2)
STRATEGY = "raise dpo.reference_policy_kl_penalty to 0.1-0.3 or lower the learning rate"


def check_first_step(preference_loss: float, precision: str, beta: float) -> None:
    """Raise UserError unless the loss is ln 2, as it must be where policy and reference are the same weights.

    float32 allows 1e-5. bfloat16 rounds log-probs differently in differently packed rows, by noise that enters through
    beta; its bound is 0.02, and wider where beta is above 1.
    """
    bound = 1e-5 if precision == "float32" else 0.02 * max(1.0, beta)
    if not abs(preference_loss - LN2) <= bound:
        raise UserError(
            f"preference loss at step 1 is {preference_loss:.6f} where the reference's own policy gives ln 2 = {LN2:.6f} "
            f"(+- {bound:g} in {precision})",
            remedy="score the pairs again with ref-logprobs at the same --precision",
        )


def check_finite(step: int, metrics: Mapping[str, float], lines: Sequence[int]) -> None:
    """Raise UserError where the loss or the gradient norm is not finite; `lines` are the input lines of the pairs to blame."""
    if not lines and all(math.isfinite(metrics.get(name, 0.0)) for name in ("loss", "grad_norm")):
        return
    shown = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
    blamed = f"the pairs of input lines {shown}" if lines else f"gradient norm {metrics.get('grad_norm')}"
    raise UserError(f"step {step}: loss {metrics['loss']} or its gradient is not finite: {blamed}", remedy=STRATEGY)

"""What stops a run."""

from __future__ import annotations

import math
import re

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.training import guards


@pytest.mark.parametrize(
    ("loss", "precision", "beta", "fine"),
    [
        (math.log(2) + 9e-6, "float32", 0.05, True),
        (math.log(2) + 2e-5, "float32", 0.05, False),
        (math.log(2) + 0.019, "bfloat16", 0.05, True),
        (math.log(2) + 0.03, "bfloat16", 0.05, False),
        (math.nan, "bfloat16", 0.05, False),
    ],
)
def test_first_step_must_be_ln_2(loss: float, precision: str, beta: float, fine: bool) -> None:
    if fine:
        guards.check_first_step(loss, precision, beta)
        return
    with pytest.raises(UserError, match="preference loss at step 1"):
        guards.check_first_step(loss, precision, beta)


@pytest.mark.parametrize(("loss", "norm", "bad"), [(math.inf, 1.0, 0), (1.0, math.nan, 0), (1.0, 1.0, 2)])
def test_anything_not_finite_stops_with_the_strategy_on_record(loss: float, norm: float, bad: int) -> None:
    with pytest.raises(UserError, match=re.escape(guards.STRATEGY)):
        guards.check_finite(3, {"loss": loss, "grad_norm": norm}, bad, "rows")


def test_the_strategy_is_the_manifests() -> None:
    assert guards.STRATEGY == "raise dpo.reference_policy_kl_penalty to 0.1-0.3 or lower the learning rate"

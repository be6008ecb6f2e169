"""What stops a run."""

from __future__ import annotations

import math
import tomllib

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root
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


@pytest.mark.parametrize(
    ("loss", "norm", "lines", "message"),
    [
        (math.inf, 1.0, [], "step 3: loss inf"),
        (1.0, math.nan, [], "gradient norm nan"),
        (math.nan, 1.0, [17, 93], "the pairs of input lines 17, 93"),
        (math.nan, 1.0, list(range(1, 30)), "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...: raise"),
    ],
)
def test_anything_not_finite_stops_and_names_the_pairs(loss: float, norm: float, lines: list[int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        guards.check_finite(3, {"loss": loss, "grad_norm": norm}, lines)
    assert message in str(caught.value)
    assert guards.STRATEGY in str(caught.value)


def test_finite_numbers_pass() -> None:
    guards.check_finite(3, {"loss": 0.7, "grad_norm": 1e30}, [])


def test_the_strategy_is_the_manifests() -> None:
    """Word for word, but for its capital and its comma."""
    manifest = tomllib.loads((configs_root() / "rl" / "nemo_rl" / "dpo" / "step.toml").read_text())
    (strategy,) = (one["then"] for one in manifest["strategies"] if "diverges" in one["when"])
    assert strategy.lower().replace(",", "") == guards.STRATEGY

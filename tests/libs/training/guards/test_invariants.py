"""What stops a run."""

from __future__ import annotations

import math
import tomllib

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.objective.losses.sft import Sft
from nemotron_dpo.objective.protocol import FirstReading
from nemotron_dpo.objective.weighted_sum import weighted_sum
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.training import guards


@pytest.mark.parametrize(
    ("loss", "precision", "beta", "fine"),
    [
        (math.log(2) + 9e-6, "float32", 0.05, True),
        (math.log(2) + 2e-5, "float32", 0.05, False),
        (math.log(2) + 0.019, "bfloat16", 0.05, True),
        (math.log(2) + 0.03, "bfloat16", 0.05, False),
        (math.log(2) + 0.03, "bfloat16", 2.0, True),  # rounding enters times beta / 2: the bound is 0.04
        (math.log(2) + 0.05, "bfloat16", 2.0, False),
        (math.nan, "bfloat16", 0.05, False),
    ],
)
def test_first_step_must_be_ln_2(loss: float, precision: str, beta: float, fine: bool) -> None:
    values, terms = {"preference_loss": loss, "sft_loss": 17.0}, weighted_sum((1.0, Dpo(beta)), (1.0, Sft())).terms
    if fine:
        guards.check_first_step(values, terms, precision)
        return
    message = r"preference loss at step 1 is .* where the reference's own policy gives ln 2 = 0\.693147 "
    with pytest.raises(UserError, match=message):
        guards.check_first_step(values, terms, precision)


def test_first_step_is_each_terms_own() -> None:
    """A squared loss that begins at 25 = 1 / (4 beta^2), beta 0.1, with slope 1 / beta: its bound is 20 times as wide."""
    terms = {"offset": FirstReading(25.0, "1 / (4 beta^2)", slope=10.0)}
    guards.check_first_step({"offset_loss": 25.0001}, terms, "float32")
    with pytest.raises(UserError, match=r"^offset loss at step 1 is 24\.999700 where .* gives 1 / \(4 beta\^2\) = 25\.000000"):
        guards.check_first_step({"offset_loss": 24.9997}, terms, "float32")


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


def test_a_large_value_may_be_rounded_itself() -> None:
    """1 / (2 beta^2) with beta 0.001 is 500000, where a float32 is known to 0.03; its slope 1 / beta would allow 0.02."""
    terms = {"far": FirstReading(500000.0, "1 / (2 beta^2)", slope=1000.0)}
    guards.check_first_step({"far_loss": 500000.25}, terms, "float32")
    with pytest.raises(UserError, match="far loss at step 1"):
        guards.check_first_step({"far_loss": 500001.0}, terms, "float32")


def test_a_state_that_is_not_finite_stops() -> None:
    guards.check_finite(3, {"loss": 0.7, "state/mean": -2.0}, [])
    with pytest.raises(UserError, match=r"^step 3: loss 0\.7 or its gradient is not finite: .*state/mean nan"):
        guards.check_finite(3, {"loss": 0.7, "state/mean": math.nan}, [])


def test_finite_numbers_pass() -> None:
    guards.check_finite(3, {"loss": 0.7, "grad_norm": 1e30}, [])


def test_the_strategy_is_the_manifests() -> None:
    """Word for word, but for its capital and its comma."""
    manifest = tomllib.loads((configs_root() / "rl" / "nemo_rl" / "dpo" / "step.toml").read_text())
    (strategy,) = (one["then"] for one in manifest["strategies"] if "diverges" in one["when"])
    assert strategy.lower().replace(",", "") == guards.STRATEGY

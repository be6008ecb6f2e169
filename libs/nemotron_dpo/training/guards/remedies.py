"""What to try where a run diverges: the manifest's strategy, with values made from the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_dpo.training.guards import findings
from nemotron_dpo.training.guards.findings import Finding

BETA, LR = "dpo.reference_policy_kl_penalty", "policy.optimizer.lr"
_BETA_FROM, _BETA_TO = 0.1, 0.3  # the manifest's, for log-ratios that are summed over a response
_MILD, _STRONG, _STRONG_LEVEL = 3, 10, 2.0  # by how much a rate is lowered, and from which level on by more


@dataclass(frozen=True)
class Tuning:
    """The settings of a run that its remedies are made from.

    lr: the highest learning rate of the schedule; learning_rates: those of all steps. beta: None where the objective has none
    that holds the policy to a reference. sums: beta is of sums over tokens, as the manifest means it. clips: gradients are
    clipped.
    """

    lr: float
    learning_rates: Sequence[float]
    beta: float | None = None
    sums: bool = True
    clips: bool = True


def remedy(found: Finding, tuning: Tuning, level: float) -> str:
    """In words, the settings to try. `level` is the highest of what was found in that step: it has one cause."""
    rate = f"{LR}={_rate(found, tuning, level):.2g} (it is {tuning.lr:.3g})"
    if found.kind == findings.VALIDATION and found.good_step > 0:
        return f"try dpo.max_num_steps={found.good_step}, or {rate}"
    if found.kind == findings.GRADIENT and not tuning.clips:
        return f"try policy.max_grad_norm=1, or {rate}"
    if found.kind == findings.KL_COLLAPSE or tuning.beta is None or (tuning.sums and tuning.beta >= _BETA_TO):
        return f"try {rate}"
    return f"try {BETA}={_beta(tuning.beta, sums=tuning.sums):.2g} (it is {tuning.beta:.3g}), or {rate}"


def _beta(beta: float, *, sums: bool) -> float:
    """Twice what it is, and within the manifest's range where that has a meaning."""
    return min(max(2 * beta, _BETA_FROM), _BETA_TO) if sums else 2 * beta


def _rate(found: Finding, tuning: Tuning, level: float) -> float:
    """A third or a tenth of the rate, and no more than the run had up to where it was good, if it was in its warm-up then."""
    lower = tuning.lr / (_STRONG if level >= _STRONG_LEVEL else _MILD)
    reached = max(tuning.learning_rates[: found.good_step], default=0.0)
    return min(lower, reached) if reached > 0 else lower

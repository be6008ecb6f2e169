"""What a detection finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """That a run goes wrong.

    kind: which detection says so, one of the names below. step: where it was seen. seen: what, with its numbers. level: how far
    above what is borne, 1 at the bound. good_step: the policy that this step left was still measured as good. by: the value by
    which the pairs are found that it was seen on most, as in `blamed`. split: whose pairs.
    """

    kind: str
    step: int
    seen: str
    level: float
    good_step: int
    by: str = "loss"
    split: str = "train"

    @property
    def key(self) -> str:
        """What is one and the same trouble: the kind, of one validation set."""
        return self.kind if self.split == "train" else f"{self.kind} {self.split}"


LOSS = "loss_above_start"
KL_EXPLOSION = "kl_explosion"
KL_COLLAPSE = "kl_collapse"
GRADIENT = "gradient_spike"
ACCURACY = "accuracy_falls"
CHOSEN = "chosen_logp_falls"
VALIDATION = "validation_turned"

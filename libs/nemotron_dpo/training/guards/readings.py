"""What the guards read of a run: a few numbers of each step, and of each validation. All ranks read the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemotron_dpo.training.record import Record

if TYPE_CHECKING:
    from nemotron_dpo.training.pair_values import PairValues


@dataclass(frozen=True)
class Side:
    """The responses of one side of a step's pairs: their mean log-prob a token, less the reference's where pairs are scored.

    In nats; `num_tokens` is the mean length of a response.
    """

    per_token: float
    num_tokens: float

    @property
    def per_response(self) -> float:
        """The same of a response of the mean length."""
        return self.per_token * self.num_tokens


@dataclass(frozen=True)
class Reading:
    """A training step: the loss and gradient of the policy that the step before left, over `num_pairs` pairs.

    loss_error: the standard error of the loss that the scatter of its pairs gives it, None where that is not known. accuracy:
    None where the objective compares no responses. chosen, rejected: None where a step has no values of its pairs. is_scored:
    the sides are log-ratios to the reference.
    """

    step: int
    loss: float
    grad_norm: float
    num_pairs: float
    loss_error: float | None = None
    accuracy: float | None = None
    chosen: Side | None = None
    rejected: Side | None = None
    is_scored: bool = False


def reading(record: Record, *, compares: bool) -> Reading:
    """What the guards read of the record of a training step; `compares`: the objective compares responses."""
    values, pairs = record.values, record.pairs
    return Reading(
        record.step,
        values["train/loss"],
        values["train/grad_norm"],
        values["train/num_valid_samples"],
        _error(values["train/loss"], pairs),
        values["train/accuracy"] if compares else None,
        _side(pairs, "chosen"),
        _side(pairs, "rejected") if compares else None,
        pairs is not None and "chosen_log_ratio" in pairs.by_name,
    )


def _error(loss: float, pairs: PairValues | None) -> float | None:
    """Of a mean over pairs, of which the preference loss or else the log-prob of the chosen response is known.

    The loss is these times a weight, or not much else: so its scatter in proportion to its size is taken to be theirs.
    """
    if pairs is None or len(pairs.rows) < 2:
        return None
    each = [float(value) for value in pairs.by_name.get("loss", pairs.by_name["chosen_logp"])]
    mean = math.fsum(each) / len(each)
    variance = math.fsum((value - mean) ** 2 for value in each) / (len(each) - 1)
    error = math.sqrt(variance / len(each)) * (abs(loss / mean) if mean else 1.0)
    return error if math.isfinite(error) else None


def _side(pairs: PairValues | None, side: str) -> Side | None:
    if pairs is None or not len(pairs.rows):
        return None
    values = pairs.by_name.get(f"{side}_log_ratio", pairs.by_name[f"{side}_logp"])
    num_tokens = float(getattr(pairs.data, side).lengths[pairs.rows].sum())
    total = math.fsum(map(float, values))
    return Side(total / num_tokens, num_tokens / len(pairs.rows)) if math.isfinite(total) else None


def validation_reading(record: Record) -> tuple[float, float]:
    """The loss of the record of a validation, and the number of its pairs."""
    return record.values[f"{record.split}/loss"], record.values[f"{record.split}/num_valid_samples"]


def to_plain(one: Reading) -> list[float | None]:
    """`one` as JSON has it, exactly; `from_plain` is the inverse."""
    pairs = ((side.per_token, side.num_tokens) if side else (None, None) for side in (one.chosen, one.rejected))
    sides = [value for pair in pairs for value in pair]
    return [one.step, one.loss, one.grad_norm, one.num_pairs, one.loss_error, one.accuracy, *sides, one.is_scored]


def from_plain(values: list) -> Reading:
    """See `to_plain`."""
    step, loss, grad_norm, num_pairs, loss_error, accuracy, *sides, is_scored = values
    chosen, rejected = (None if token is None else Side(token, count) for token, count in (sides[:2], sides[2:]))
    return Reading(step, loss, grad_norm, num_pairs, loss_error, accuracy, chosen, rejected, is_scored)

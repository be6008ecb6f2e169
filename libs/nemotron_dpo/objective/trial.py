"""Try an objective on two made-up pairs: what is wrong with a user's own is said before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nemotron_dpo.objective.inputs import LossInputs, Responses, Tails
from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses, Rewards
from nemotron_dpo.objective.weighted_sum import after, state_of, with_state


def problem(objective: Objective) -> str | None:
    """What `objective` does that an objective must not, as the end of a sentence; None where it works.

    What its code raises goes through.
    """
    needs = objective.needs
    logps = torch.tensor([[-3.0, -5.0], [-4.0, -2.0]], requires_grad=True)
    pairs, terms = _pairs(logps, needs), objective.terms
    return _wrong_terms(terms) or _wrong(objective.losses(pairs), terms, needs, logps) or _wrong_state(objective, pairs)


def _pairs(logps_2P: Tensor, needs: Needs) -> LossInputs:
    """Two pairs whose reference log-probs are -3 and -4, of 4 and 3 tokens, the chosen ones worth 1 more than the others."""
    counts = torch.tensor([[4.0, 3.0], [2.0, 5.0]])
    chosen, rejected = (
        Responses(
            logp,
            number,
            logp + 3.5 if needs.reference else None,
            torch.full((2,), worth) if needs.row_rewards else None,
            dict.fromkeys(needs.token_values, torch.full((2,), -0.5)),
            given_tails=Tails(logp / number, (logp + 3.5) / number if needs.reference else None) if needs.tails else None,
        )
        for logp, number, worth in zip(logps_2P, counts, (1.0, 0.0), strict=True)
    )
    return LossInputs(chosen, rejected)


def _wrong_terms(terms: object) -> str | None:
    """Names go into those of metrics; a number alone does not say how far a first reading may be off."""
    if not (isinstance(terms, Mapping) and terms):
        return f"has {terms!r} for its terms, where a name of each and what it reads first is due"
    for name, first in terms.items():
        if not (isinstance(name, str) and name.isidentifier()):
            return f"has a term {name!r}, which is no name: letters, digits and _"
        if not (first is None or isinstance(first, FirstReading)):
            return f"has {first!r} for the term {name}, where a FirstReading or None is due"
    return None


def _wrong_state(objective: Objective, pairs: LossInputs) -> str | None:
    if not objective.needs.state:
        return None
    moved = after(objective, pairs)
    state = state_of(with_state(moved, state_of(moved)))
    wrong = [name for name, value in state.items() if type(value) not in (int, float)]
    return f"has {state[wrong[0]]!r} as {wrong[0]} of its state, where a number is due" if wrong else None


def _wrong(losses: object, terms: object, needs: Needs, logps: Tensor) -> str | None:
    if not isinstance(losses, PairLosses):
        return f"gives {type(losses).__name__} where PairLosses is due"
    for name, value in {"the loss": losses.loss, **{f"the term {name}": term for name, term in losses.terms.items()}}.items():
        if not isinstance(value, Tensor) or value.shape != (2,):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return f"gives {name} as {shape} for 2 pairs, where one number a pair is due"
        if not value.isfinite().all():
            return f"gives {name} as {value.tolist()} on two made-up pairs"
    if set(losses.terms) != set(terms):  # type: ignore[call-overload] - a user's, that is tried here
        return f"has the terms {sorted(terms)}, and its losses have {sorted(losses.terms)}"  # type: ignore[call-overload] - see above
    if needs.rejected and not isinstance(losses.rewards, Rewards):
        return "compares responses and gives no Rewards; Needs(rejected=False) says that it does not compare"
    if not losses.loss.requires_grad:
        return "gives a loss without a gradient"
    losses.loss.sum().backward()
    return None if logps.grad is not None and logps.grad.isfinite().all() else "gives a gradient that is not finite"

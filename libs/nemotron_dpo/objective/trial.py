"""Try an objective on two made-up pairs: what is wrong with a user's own is said before a model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.objective.inputs import LossInputs, Responses
from nemotron_dpo.objective.protocol import Needs, Objective, PairLosses, Rewards


def problem(objective: Objective) -> str | None:
    """What `objective` does that an objective must not, as the end of a sentence; None where it works.

    What its code raises goes through.
    """
    needs = objective.needs
    logps = torch.tensor([[-3.0, -5.0], [-4.0, -2.0]], requires_grad=True)
    return _wrong(objective.losses(_pairs(logps, needs)), objective.terms, needs, logps)


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
        )
        for logp, number, worth in zip(logps_2P, counts, (1.0, 0.0), strict=True)
    )
    return LossInputs(chosen, rejected)


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

"""Ours against what TRL 1.16.0's own code gives for the same log-probs in float32.

The numbers are what tests/interop/trl_losses.py printed: the loss, and the norm of its gradient by the log-probs of all tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.inputs import LossInputs, Responses, loss_inputs, with_tails
from nemotron_dpo.objective.modified import modified, modifiers
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.weighted_sum import after, mixture
from nemotron_dpo.policy.rows import pack_row
from support.trl_pairs import LENGTHS, tokens

TRL = {
    "dpo": (0.7940916419029236, 0.07912685722112656),
    "dpo eps ignored": (0.7940916419029236, 0.07912685722112656),
    "dpo_norm": (0.6928963661193848, 0.014639770612120628),
    "robust": (0.8157582879066467, 0.0973762571811676),
    "hinge": (1.1733332872390747, 0.14719603955745697),
    "ipo": (25.60179901123047, 2.8441481590270996),
    "exo_pair": (0.6179093718528748, 0.0837056115269661),
    "nca_pair": (1.4421143531799316, 0.04045409336686134),
    "bco_pair": (1.4867244958877563, 0.07813415676355362),
    "sppo_hard": (78.38666534423828, 19.104623794555664),
    "aot_paired": (0.7747042179107666, 0.06437762826681137),
    "aot_unpaired": (0.7668210864067078, 0.06566906720399857),
    "apo_zero": (1.0428012609481812, 0.03628786280751228),
    "apo_down": (1.0200968980789185, 0.02454756759107113),
    "discopop": (0.859170138835907, 0.08757389336824417),
    "sft": (1.1945122480392456, 0.15617375075817108),
    "mixture": (0.932618260383606, 0.07886648923158646),
    "forward_kl": (1.2690463066101074, 1.115495204925537),
    "js_divergence": (0.7312337756156921, 0.041914377361536026),
    "alpha_divergence": (0.843818187713623, 0.1809653490781784),
    "ipo js_divergence": (25.5557804107666, 1.955119013786316),
    "ld_alpha": (0.7638080716133118, 0.06153225153684616),
    "ipo ld_alpha": (25.143800735473633, 2.6315252780914307),
    "nca_pair ld_alpha": (1.4261798858642578, 0.031348615884780884),
    "wpo_weighting": (0.7776117920875549, 0.08233588933944702),
    "cpo": (8.27170467376709, 1.7095495462417603),
    "simpo": (1.1134368181228638, 0.40472090244293213),
    "alphapo": (1.157019019126892, 0.5510690808296204),
    "orpo": (0.08374907821416855, 0.039409808814525604),
}
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"label_smoothing": 0.1} for name in ("robust", "exo_pair", "aot_paired", "aot_unpaired")},
    **{name: {"f_divergence": name} for name in ("forward_kl", "js_divergence", "alpha_divergence")},
    "ipo js_divergence": {"f_divergence": "js_divergence"},
    **{name: {"ld_alpha": 0.3} for name in ("ld_alpha", "ipo ld_alpha", "nca_pair ld_alpha")},
    "wpo_weighting": {"wpo_weighting": True},
    "cpo": {"label_smoothing": 0.1, "cpo_alpha": 0.0},
}


def _made(case: str) -> Objective:
    if case == "mixture":
        parts = [(name, weight, registry.make(name, beta=0.1)) for name, weight in (("dpo", 0.8), ("bco_pair", 0.2))]
        return mixture(parts)
    entry = registry.find(case.split()[0] if case.split()[0] in registry.entries() else "dpo")
    if case == "dpo eps ignored":  # which ours would not
        return registry.make("dpo", beta=0.1)
    values, across = dict(SETTINGS.get(case, {})), {name for modifier in modifiers().values() for name in modifier.settings}
    if "beta" in entry.settings:
        values |= {"beta": 2.0 if entry.name in ("cpo", "simpo", "alphapo") else 0.1}
    own = {name: value for name, value in values.items() if name not in across}
    changes = {name: value for name, value in values.items() if name in across}
    (objective,) = modified([(entry, registry.make(entry.name, **own))], **changes)
    return objective


CHOSEN, REJECTED = ([np.arange(pair[side]) for pair in LENGTHS] for side in (0, 1))
ROW = pack_row([np.arange(1)] * len(LENGTHS), CHOSEN, REJECTED)
LOGPS_R, REF_R, SQUARES_R = torch.tensor(
    [row for pair in range(len(LENGTHS)) for side in (0, 1) for row in tokens(pair, side)], dtype=torch.float32
).T


def _losses(case: str, logps_R: Tensor) -> Any:
    objective, sums = _made(case), ROW.sums_of_responses
    ref_R = REF_R if objective.needs.reference else None
    pairs = loss_inputs(logps_R, ref_R, sums, dict.fromkeys(objective.needs.token_values, SQUARES_R))
    pairs = with_tails(pairs, logps_R, ref_R, sums, ROW.is_tail_R) if objective.needs.tails else pairs
    return after(objective, pairs).losses(pairs)


def _ours(case: str) -> tuple[float, float]:
    """The mean over pairs, and the norm of its gradient."""
    logps_R = LOGPS_R.clone().requires_grad_()
    losses = _losses(case, logps_R)
    loss = losses.loss.mean()
    if case == "sft":  # as TRL has it
        loss = losses.loss.sum() / sum(pair[0] for pair in LENGTHS)
    if case == "orpo":
        loss = 0.1 * losses.terms["preference"].mean()
    (slope_R,) = torch.autograd.grad(loss, logps_R)
    return loss.item(), slope_R.norm().item()


@pytest.mark.parametrize("case", TRL)
def test_losses_and_gradients(case: str) -> None:
    assert _ours(case) == pytest.approx(TRL[case], rel=2e-6)


def test_every_objective_that_trl_has_is_compared() -> None:
    """So are its divergences, lengths and weights; bco, which 1.16 has no more, is derived by hand."""
    trl_has_not = {"bco", "beta_dpo", "cal_dpo", "chi_po", "dpop", "odpo", "rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"}
    assert set(TRL) >= set(registry.entries()) - trl_has_not
    assert {name for settings in SETTINGS.values() for name in settings} >= {"f_divergence", "ld_alpha", "wpo_weighting"}


def test_what_trl_has_otherwise() -> None:
    """Its sigmoid ignores label smoothing, and its aot sorts micro batches: two pairs at a time are not six."""
    pairs = loss_inputs(LOGPS_R, REF_R, ROW.sums_of_responses)
    margin = pairs.margin()
    expected = 0.9 * softplus(-0.1 * margin) + 0.1 * softplus(0.1 * margin)
    assert TRL["dpo eps ignored"] == TRL["dpo"]
    assert registry.make("dpo", beta=0.1, label_smoothing=0.1).losses(pairs).loss.tolist() == pytest.approx(expected.tolist())
    assert expected.mean().item() != pytest.approx(TRL["dpo"][0], rel=1e-3)
    aot = registry.make("aot", beta=0.5)
    in_parts = torch.cat([aot.losses(_part(pairs, part)).loss for part in (slice(0, 2), slice(2, 4), slice(4, 6))])
    assert in_parts.mean().item() != pytest.approx(aot.losses(pairs).loss.mean().item(), rel=1e-2)


def _part(pairs: LossInputs, part: slice) -> LossInputs:
    return pairs.each(lambda side: Responses(side.logp[part], side.num_tokens[part], side.log_ratio[part]))

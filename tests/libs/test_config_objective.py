"""The objective that settings come to, and who asks it what it needs."""

from __future__ import annotations

import pytest

from nemotron_dpo.config import load_run, objective_of

# overrides -> whether a reference is needed, whether responses are compared, the terms
SETTINGS = [
    ([], True, True, {"preference"}),
    (["dpo.sft_loss_weight=0.1"], True, True, {"preference", "sft"}),
    (["dpo.preference_loss_weight=1e-9"], True, True, {"preference"}),
    (["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"], False, False, {"sft"}),
]


def test_weights_decide_what_is_needed():
    for overrides, reference, rejected, terms in SETTINGS:
        objective = objective_of(load_run(None, overrides)[0].dpo)
        assert (objective.needs.reference, objective.needs.rejected) == (reference, rejected), overrides
        assert set(objective.terms) == terms, overrides


def test_settings_reach_the_loss():
    """Pairs with r_c = 3, r_r = 1 over 2 and 1 tokens, l_c = -4: margins 2, or 3/2 - 1 of means; SFT 4, or 4 / 2."""
    import torch

    from nemotron_dpo.objective.inputs import LossInputs, Responses

    chosen = Responses(torch.tensor([-4.0]), torch.tensor([2.0]), torch.tensor([3.0]))
    pairs = LossInputs(chosen, Responses(torch.tensor([-9.0]), torch.tensor([1.0]), torch.tensor([1.0])))
    preference = ["dpo.preference_loss_weight=2", "dpo.sft_loss_weight=0.5", "dpo.reference_policy_kl_penalty=0.3"]
    for overrides, margin, sft in (
        ([], 2.0, 4.0),
        (["dpo.preference_average_log_probs=true"], 0.5, 4.0),
        (["dpo.sft_average_log_probs=true"], 2.0, 2.0),
    ):
        loss = objective_of(load_run(None, [*preference, *overrides])[0].dpo).losses(pairs).loss
        expected = 2 * torch.nn.functional.softplus(torch.tensor(-0.3 * margin)).item() + 0.5 * sft
        assert loss.tolist() == pytest.approx([expected], abs=1e-6)

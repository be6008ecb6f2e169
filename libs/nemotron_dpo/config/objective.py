"""The objective that a config asks for: what it needs and what it is made of can be asked of it before torch is loaded."""

from __future__ import annotations

from nemotron_dpo.config.schema import DpoConfig
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.registry import make
from nemotron_dpo.objective.weighted_sum import weighted_sum


def objective_of(dpo: DpoConfig) -> Objective:
    """Preference loss and supervised fine-tuning, each times its weight; a part of weight 0 is no part of it."""
    preference = make("dpo", beta=dpo.reference_policy_kl_penalty, average=dpo.preference_average_log_probs)
    sft = make("sft", average=dpo.sft_average_log_probs)
    return weighted_sum((dpo.preference_loss_weight, preference), (dpo.sft_loss_weight, sft))

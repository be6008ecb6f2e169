"""Metrics as sums and counts over pairs, so that they do not depend on micro-batch size, packing or number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.objective.dpo import Objective, PairLosses, Responses

SUMS = (
    "loss",
    "preference_loss",
    "sft_loss",
    "accuracy",
    "rewards_chosen_mean",
    "rewards_rejected_mean",
    "num_pairs",
    "num_tokens",
)


def sums(losses: PairLosses, responses: Responses) -> Tensor:
    """Float64 [len(SUMS)]: each metric summed over the pairs of a micro batch, to be added over micro batches and ranks.

    A pair counts as accurate where its chosen reward is the greater by more than rounding: a margin within it is no preference.
    """
    columns = (
        losses.loss,
        losses.preference_loss,
        losses.sft_loss,
        losses.chosen_reward - losses.rejected_reward > losses.rounding,
        losses.chosen_reward,
        losses.rejected_reward,
        torch.ones_like(losses.loss),
        responses.chosen_tokens + responses.rejected_tokens,
    )
    return torch.stack([column.detach().double().sum() for column in columns])


def means(total: Tensor, objective: Objective) -> dict[str, float]:
    """NeMo-RL's metric names, from the summed `SUMS` of a whole step; terms of weight 0 read 0."""
    value = dict(zip(SUMS, total.tolist(), strict=True))
    pairs = value["num_pairs"]
    result = {name: value[name] / pairs for name in SUMS[:6]}
    if not objective.sft_weight:
        result["sft_loss"] = 0.0
    if not objective.preference_weight:
        result |= {"preference_loss": 0.0, "accuracy": 0.0, "rewards_chosen_mean": 0.0, "rewards_rejected_mean": 0.0}
    return result | {
        "num_valid_samples": pairs,
        "global_valid_seqs": 2 * pairs,
        "global_valid_toks": value["num_tokens"],
    }

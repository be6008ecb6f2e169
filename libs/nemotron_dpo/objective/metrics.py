"""Metrics as sums over pairs, so that they do not depend on the size of micro batches, on packing or on the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nemotron_dpo.objective import metric_names
from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.metric_names import LOG_RATIOS, REWARDS, loss_metric, of_pairs
from nemotron_dpo.objective.protocol import Objective, PairLosses, Rewards

PAIRS, TOKENS, CHOSEN_TOKENS = "num_pairs", "num_tokens", "num_chosen_tokens"


def summed_names(objective: Objective, *, log_ratios: bool = False, token_metrics: bool = False) -> tuple[str, ...]:
    """The names of `sums` that `means` reads, also where there are no pairs to sum."""
    rewards = REWARDS if objective.needs.rejected else ()
    ratios = LOG_RATIOS if log_ratios else ()
    tokens = (*metric_names.TOKEN_METRICS, CHOSEN_TOKENS) if token_metrics else ()
    return ("loss", *map(loss_metric, objective.terms), *rewards, *ratios, *tokens, PAIRS, TOKENS)


def sums(losses: PairLosses, pairs: LossInputs, log_ratios: Rewards | None = None) -> dict[str, Tensor]:
    """Float64 scalars: each metric summed over `pairs`, to be added over micro batches and ranks.

    A pair counts as accurate where its chosen reward is the greater by more than rounding: a margin within it is no preference.
    `log_ratios` are those to a reference that the objective does not read: they tell how far the policy is from it.
    """
    values = {"loss": losses.loss, **{loss_metric(name): term for name, term in losses.terms.items()}}
    rewards = losses.rewards
    if rewards is not None:
        accurate = rewards.chosen - rewards.rejected > rewards.rounding
        values |= dict(zip(REWARDS, (accurate, rewards.chosen, rewards.rejected), strict=True))
    if pairs.chosen.token_means.keys() >= metric_names.TOKEN_VALUES:
        values |= _of_tokens(pairs, compares=rewards is not None)
    if log_ratios is not None:
        values |= dict(zip(LOG_RATIOS, (log_ratios.chosen, log_ratios.rejected), strict=True))
    values |= {PAIRS: torch.ones_like(losses.loss), TOKENS: pairs.chosen.num_tokens + pairs.rejected.num_tokens}
    return {name: value.detach().double().sum() for name, value in values.items()}


def _of_tokens(pairs: LossInputs, *, compares: bool) -> dict[str, Tensor]:
    """Sums over tokens as TRL has them: entropy of both responses, or of those that are learned; accuracy of chosen ones."""
    chosen, rejected = (
        {metric: side.token_means[value] * side.num_tokens for metric, value in metric_names.TOKEN_METRICS.items()}
        for side in (pairs.chosen, pairs.rejected)
    )
    if compares:
        chosen["entropy"] = chosen["entropy"] + rejected["entropy"]
    return {**chosen, CHOSEN_TOKENS: pairs.chosen.num_tokens}


def means(total: Mapping[str, float], objective: Objective, *, token_metrics: bool = False) -> dict[str, float]:
    """What a record says of all pairs together, from the total of `sums`; what the objective does not measure is 0."""
    pairs, tokens = total[PAIRS], total[TOKENS]
    counts = {"num_valid_samples": pairs, "global_valid_seqs": 2 * pairs, "global_valid_toks": tokens}
    per = {"entropy": TOKENS if objective.needs.rejected else CHOSEN_TOKENS, "mean_token_accuracy": CHOSEN_TOKENS}
    names = (*of_pairs(objective.terms, token_metrics=token_metrics), *(name for name in LOG_RATIOS if name in total))
    return {name: counts[name] if name in counts else total.get(name, 0.0) / total[per.get(name, PAIRS)] for name in names}

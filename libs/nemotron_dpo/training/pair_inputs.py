"""What is known of each pair: of a micro batch, or of a global batch in its own order, whichever ranks computed which pairs.

Legend: R response tokens of a packed row, P pairs of the micro batches of this rank, B pairs of the global batch, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from nemotron_dpo.objective.inputs import LossInputs, Responses, Tails, loss_inputs, with_tails
from nemotron_dpo.objective.protocol import Needs, Rewards
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import device
from nemotron_dpo.training.batches import GlobalBatch, PairBatch

Columns = Mapping[str, Tensor]
NO_VALUES: Mapping[str, Tensor] = MappingProxyType({})
KL = "kl"  # half the square of a token's log-ratio, known where there are scores: a mean of them estimates the KL divergence
_SIDES, _MEAN, _TAIL = ("chosen", "rejected"), "mean of ", "tail."


def known(batch: PairBatch, logps_R: Tensor, token_values: Mapping[str, Tensor], needs: Needs) -> LossInputs:
    """What the needs name of the pairs of `batch`; log-ratios and `token_values` also where they are there unasked for."""
    by_response = batch.row.sums_of_responses
    if batch.ref_logps_R is not None:
        token_values = {**token_values, KL: (logps_R.detach() - batch.ref_logps_R).square() / 2}
    pairs = loss_inputs(logps_R, batch.ref_logps_R, by_response, token_values)
    if needs.tails:
        pairs = with_tails(pairs, logps_R, batch.ref_logps_R, by_response, batch.row.is_tail_R)
    return _with_row_rewards(pairs, batch.row_rewards_P2) if needs.row_rewards else pairs


def needed(pairs: LossInputs, needs: Needs) -> LossInputs:
    """`pairs` without what nobody asked for: what an objective does not ask for it does not get."""
    return pairs.each(lambda responses: _needed(responses, needs))


def unread_log_ratios(pairs: LossInputs, needs: Needs) -> Rewards | None:
    """The log-ratios of pairs that have a reference which nobody asked for."""
    return None if needs.reference or pairs.chosen.given_log_ratio is None else pairs.rewards()


def _needed(responses: Responses, needs: Needs) -> Responses:
    means = {name: mean for name, mean in responses.token_means.items() if name in needs.token_values}
    return replace(responses, given_log_ratio=responses.given_log_ratio if needs.reference else None, token_means=means)


def _with_row_rewards(pairs: LossInputs, rewards_P2: Tensor | None) -> LossInputs:
    if rewards_P2 is None:  # of a micro batch without pairs, for data without rewards were refused when they were opened
        rewards_P2 = pairs.chosen.logp.detach().new_zeros((len(pairs.chosen.logp), 2))
    sides = zip((pairs.chosen, pairs.rejected), rewards_P2.unbind(1), strict=True)
    chosen, rejected = (replace(side, given_row_reward=rewards_P) for side, rewards_P in sides)
    return LossInputs(chosen, rejected)


def columns(pairs: LossInputs) -> Columns:
    """Each value of each response, float32 [P], by a name such as "chosen.logp"."""
    sides = zip(_SIDES, (pairs.chosen, pairs.rejected), strict=True)
    return {f"{side}.{name}": values for side, responses in sides for name, values in _columns(responses).items()}


def of_columns(columns: Columns) -> LossInputs:
    """The inverse of `columns`."""
    chosen, rejected = (_responses(_below(f"{side}.", columns)) for side in _SIDES)
    return LossInputs(chosen, rejected)


def detached(pairs: LossInputs) -> LossInputs:
    """The same values without what they were computed from."""
    return of_columns({name: values.detach() for name, values in columns(pairs).items()})


def _columns(responses: Responses) -> Columns:
    tails = responses.given_tails
    found = {
        "logp": responses.logp,
        "num_tokens": responses.num_tokens,
        "log_ratio": responses.given_log_ratio,
        "row_reward": responses.given_row_reward,
        **{f"{_MEAN}{name}": responses.token_means[name] for name in sorted(responses.token_means)},
        f"{_TAIL}logp": tails and tails.logp,
        f"{_TAIL}log_ratio": tails and tails.log_ratio,
    }
    return {name: values for name, values in found.items() if values is not None}


def _responses(columns: Columns) -> Responses:
    tails = _below(_TAIL, columns)
    return Responses(
        columns["logp"],
        columns["num_tokens"],
        columns.get("log_ratio"),
        columns.get("row_reward"),
        _below(_MEAN, columns),
        given_tails=Tails(tails["logp"], tails.get("log_ratio")) if tails else None,
    )


def _below(start: str, columns: Columns) -> Columns:
    """The columns whose names begin with `start`, without it."""
    return {name.removeprefix(start): values for name, values in columns.items() if name.startswith(start)}


def of_global_batch(parts: Sequence[LossInputs], batch: GlobalBatch, token_values: frozenset[str], needs: Needs) -> LossInputs:
    """The pairs of all ranks in the order of the global batch, the same bit for bit on every process; every rank calls it.

    `parts` are those of each of this rank's micro batches, as `known` has them; ranks before the last pipeline stage have none.
    """
    names = list(columns(_zeros(batch.mine[0], token_values, needs)))
    mine = [columns(part) for part in parts]
    assert all(list(one) == names for one in mine), "ranks know different things of their pairs"
    mine_CP, here_P = torch.zeros(len(names), 0, device=device()), torch.zeros(0, dtype=torch.long, device=device())
    if mine:
        mine_CP = torch.stack([torch.cat([one[name] for one in mine]) for name in names])
        here_P = torch.cat([batch.places(one) for one in batch.mine])
    all_CB = parallel.placed_over_job(mine_CP, here_P, len(batch.rows)).float()
    whole = of_columns(dict(zip(names, all_CB, strict=True)))
    assert bool((whole.chosen.num_tokens > 0).all()), "a pair of the global batch is no rank's"
    return whole


def _zeros(batch: PairBatch, token_values: frozenset[str], needs: Needs) -> LossInputs:
    """What is known of `batch` by values of 0: also ranks that compute no log-probs name the columns by it."""
    zeros_R = torch.zeros(len(batch.row.targets_R), device=device())
    return known(batch, zeros_R, dict.fromkeys(token_values, zeros_R), needs)

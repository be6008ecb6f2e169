"""From the log-probs of a packed row to what an objective is given. Legend: P pairs, R response tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from nemotron_dpo.objective.protocol import Rewards

# The rounding of one token's log-prob, in units of its dtype's roundoff (2^-24 for float32). A logit may have 2^5 nats, 30
# layers make 2^2 of their own roundings (measured, rms), and 2^3 standard deviations are allowed.
ROUNDINGS = 2.0**10
_Given = TypeVar("_Given")


@dataclass(frozen=True)
class Tails:
    """Float32 [P]: the parts of the sums that are of tokens past the number of tokens that the pair's shorter response has."""

    logp: Tensor
    log_ratio: Tensor | None


@dataclass(frozen=True)
class Responses:
    """One response of each pair, float32 [P] each: `logp` is the sum of log pi(token) over its `num_tokens` tokens.

    What the objective did not ask for in its `needs` is None, and reading it is an error.
    """

    logp: Tensor
    num_tokens: Tensor
    given_log_ratio: Tensor | None = None
    given_row_reward: Tensor | None = None
    token_means: Mapping[str, Tensor] = field(default_factory=dict)  # by the names in `needs.token_values`
    given_score: Tensor | None = None  # what a divergence makes of the log-ratio
    given_tails: Tails | None = None

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x).

        It is subtracted token by token and then summed: that keeps the precision that a difference of two long sums loses.
        """
        return _asked_for(self.given_log_ratio, "reference")

    @property
    def score(self) -> Tensor:
        """The log-ratio, or what another divergence than the KL puts in its place."""
        return self.log_ratio if self.given_score is None else self.given_score

    @property
    def row_reward(self) -> Tensor:
        """What the row of the data says that the response is worth."""
        return _asked_for(self.given_row_reward, "row_rewards")

    @property
    def tails(self) -> Tails:
        """What the tokens count for that the other response is too short to have."""
        return _asked_for(self.given_tails, "tails")


@dataclass(frozen=True)
class LossInputs:
    """P pairs, each as its chosen and its rejected response.

    `offset` is added to beta times the margin: see `logit`.
    """

    chosen: Responses
    rejected: Responses
    offset: Tensor | None = None

    def rewards(self, *, average: bool = False) -> Rewards:
        """Log-ratios, summed over a response's tokens or averaged; NOT multiplied by beta, as NeMo-RL reports them."""
        chosen, rejected = self._each(lambda side: side.log_ratio, average)
        return Rewards(chosen, rejected, self.rounding(average=average))

    def logps(self, *, average: bool = False) -> Rewards:
        """Log-probs, summed or averaged: the rewards of an objective without a reference."""
        chosen, rejected = self._each(lambda side: side.logp, average)
        return Rewards(chosen, rejected, self.rounding(average=average))

    def margin(self, *, average: bool = False) -> Tensor:
        """d, without the offset: how much more the chosen response scores than the rejected one, summed or averaged."""
        chosen, rejected = self._each(lambda side: side.score, average)
        return chosen - rejected

    def logit(self, beta: float, *, average: bool = False) -> Tensor:
        """beta d, and the offset where there is one."""
        chosen, rejected = self._each(lambda side: side.score, average)
        logit = beta * (chosen - rejected)
        return logit if self.offset is None else logit + self.offset

    @property
    def row_margin(self) -> Tensor:
        """G: how much more the row of the data says that the chosen response is worth."""
        return self.chosen.row_reward - self.rejected.row_reward

    def rounding(self, *, average: bool = False) -> Tensor:
        """ROUNDINGS * u * sqrt(n) for a sum of n tokens, whose roundings are independent; u is half the epsilon of the dtype.

        A mean over n tokens has the rounding of the sum divided by n. The difference of two rewards has the root of the sum of
        the squares of theirs.
        """
        unit = ROUNDINGS * torch.finfo(self.chosen.logp.dtype).eps / 2
        counts = (self.chosen.num_tokens, self.rejected.num_tokens)
        chosen, rejected = (1 / count if average else count for count in counts)
        return unit * (chosen + rejected).sqrt()

    def each(self, change: Callable[[Responses], Responses]) -> LossInputs:
        """The same pairs with both responses changed."""
        return replace(self, chosen=change(self.chosen), rejected=change(self.rejected))

    def _each(self, value: Callable[[Responses], Tensor], average: bool) -> tuple[Tensor, Tensor]:
        chosen, rejected = value(self.chosen), value(self.rejected)
        return (chosen / self.chosen.num_tokens, rejected / self.rejected.num_tokens) if average else (chosen, rejected)


def loss_inputs(
    logps_R: Tensor,
    ref_logps_R: Tensor | None,
    by_response: Callable[[Tensor], Tensor],
    token_values: Mapping[str, Tensor] = MappingProxyType({}),
) -> LossInputs:
    """What an objective is given of a packed row. `by_response` sums a value [R] over each response: [P, 2], chosen first.

    `ref_logps_R` are the log-probs under the reference policy, None where the objective does not need them. `token_values` are
    values [R] by the names in `needs.token_values`.
    """
    logp_P2, num_tokens_P2 = by_response(logps_R), by_response(torch.ones_like(logps_R))
    ratio_P2 = None if ref_logps_R is None else by_response(logps_R - ref_logps_R)
    means_P2 = {name: by_response(value_R) / num_tokens_P2 for name, value_R in token_values.items()}
    chosen, rejected = (
        Responses(
            logp_P2[:, side],
            num_tokens_P2[:, side],
            None if ratio_P2 is None else ratio_P2[:, side],
            token_means={name: mean_P2[:, side] for name, mean_P2 in means_P2.items()},
        )
        for side in (0, 1)
    )
    return LossInputs(chosen, rejected)


def with_tails(
    pairs: LossInputs, logps_R: Tensor, ref_logps_R: Tensor | None, by_response: Callable[[Tensor], Tensor], is_tail_R: Tensor
) -> LossInputs:
    """What `loss_inputs` gave, and the sums over the tails for an objective that has `needs.tails`.

    `is_tail_R` is 1 for a token that is past the number of tokens of the pair's shorter response, else 0.
    """
    logp_P2 = by_response(logps_R * is_tail_R)
    ratio_P2 = None if ref_logps_R is None else by_response((logps_R - ref_logps_R) * is_tail_R)
    chosen, rejected = (Tails(logp_P2[:, side], None if ratio_P2 is None else ratio_P2[:, side]) for side in (0, 1))
    return replace(
        pairs, chosen=replace(pairs.chosen, given_tails=chosen), rejected=replace(pairs.rejected, given_tails=rejected)
    )


def _asked_for(values: _Given | None, need: str) -> _Given:
    if values is None:
        raise AttributeError(f"not given, because the objective does not ask for it: say {need} in its needs")
    return values

"""The DPO objective with NVIDIA's SFT term, per pair. Legend: P pairs, R response tokens; a `logp` is one response's sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """Weights and normalisation; `beta` is `dpo.reference_policy_kl_penalty` in a config."""

    beta: float
    preference_weight: float = 1.0
    sft_weight: float = 0.0
    preference_average: bool = False
    sft_average: bool = False

    @property
    def needs_reference(self) -> bool:
        """False for plain supervised fine-tuning, where no reference log-probs enter the loss."""
        return self.preference_weight != 0.0


@dataclass(frozen=True)
class Responses:
    """Float32 [P] each: sums over the tokens of a response, and their number.

    A log-ratio is log pi(y|x) - log pi_ref(y|x), subtracted token by token before it is summed: that keeps the precision
    that a difference of two long sums would lose.
    """

    chosen_logp: Tensor
    chosen_log_ratio: Tensor
    rejected_log_ratio: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


# of the log-prob of one token, in units of its dtype's roundoff (2^-24 of float32): 2^5 nats that a logit may have, times 2^2
# that 30 layers make of their own roundings (measured, rms), times 2^3 standard deviations
ROUNDINGS = 2.0**10


@dataclass(frozen=True)
class PairLosses:
    """Float32 [P] each; rewards are log-ratios, NOT multiplied by beta, as NeMo-RL reports them.

    `rounding` is what the difference of the rewards may be by the order of sums alone, where policy and reference are the same
    weights in differently packed rows.
    """

    loss: Tensor
    preference_loss: Tensor
    sft_loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    rounding: Tensor


def pair_losses(objective: Objective, responses: Responses) -> PairLosses:
    """The weighted loss of each pair.

    preference: -log sigmoid(beta * (r_c - r_r)), r the log-ratio   (Rafailov et al. 2023, eq. 7)
    sft:        -log pi(y_c|x)
    r and the SFT term are divided by the number of response tokens where the objective averages them.
    """
    r = responses
    chosen_reward, rejected_reward = r.chosen_log_ratio, r.rejected_log_ratio
    if objective.preference_average:
        chosen_reward, rejected_reward = chosen_reward / r.chosen_tokens, rejected_reward / r.rejected_tokens
    preference = -F.logsigmoid(objective.beta * (chosen_reward - rejected_reward))
    sft = -r.chosen_logp / r.chosen_tokens if objective.sft_average else -r.chosen_logp
    loss = torch.zeros_like(preference)
    if objective.preference_weight:
        loss = loss + objective.preference_weight * preference
    if objective.sft_weight:
        loss = loss + objective.sft_weight * sft
    return PairLosses(loss, preference, sft, chosen_reward, rejected_reward, _rounding(objective, r))


def _rounding(objective: Objective, responses: Responses) -> Tensor:
    """ROUNDINGS * u * sqrt(n) for the sum of n tokens, whose roundings are independent; u is half the epsilon of the dtype.

    A mean over n tokens has that of the sum, divided by n; the difference of two rewards has the root of the sum of squares.
    """
    unit = ROUNDINGS * torch.finfo(responses.chosen_log_ratio.dtype).eps / 2
    tokens = (responses.chosen_tokens, responses.rejected_tokens)
    chosen, rejected = (1 / n if objective.preference_average else n for n in tokens)
    return unit * (chosen + rejected).sqrt()


def responses(logps_R: Tensor, ref_logps_R: Tensor, response_R: Tensor, num_pairs: int) -> Responses:
    """Sum per-token log-probs of a packed row by response; response_R is 2 * pair + (0 chosen, 1 rejected)."""

    def by_response(values_R: Tensor) -> Tensor:
        sums = torch.zeros(2 * num_pairs, dtype=values_R.dtype, device=values_R.device)
        if values_R.is_cuda:  # where index_add adds in the order that threads come by
            return sums.index_put((response_R,), values_R, accumulate=True).view(num_pairs, 2)
        return sums.index_add(0, response_R, values_R).view(num_pairs, 2)

    logp, log_ratio = by_response(logps_R), by_response(logps_R - ref_logps_R)
    tokens = by_response(torch.ones_like(ref_logps_R))
    return Responses(logp[:, 0], log_ratio[:, 0], log_ratio[:, 1], tokens[:, 0], tokens[:, 1])

"""What the output layer knows of each response token besides its log-prob, from sums that it makes while it has the logits.

entropy: of the next token's distribution, in nats. log_sum_squares: log(sum(p * p)) over the vocabulary. is_most_probable: 1
where the token is the most probable one, else 0; of several such tokens it is the first of the vocabulary, as torch.argmax has
it. No gradient flows through them.

Each block of the vocabulary, on each tensor-parallel rank, gives the sums of `Kernels.read_logits` relative to its own highest
logit. They are brought to the highest of all and added: no large numbers are subtracted, however large the logits are.

Legend: R response tokens, C those of a chunk, N blocks of this rank's share of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAMES = frozenset({"entropy", "log_sum_squares", "is_most_probable"})
_SUMS = 5  # that read_logits makes


class TokenValues:
    """Takes the values of `names` of response tokens, chunk by chunk. Each is float32 [R], and 0 where it was not taken yet."""

    def __init__(self, names: frozenset[str]) -> None:
        unknown = sorted(names - NAMES)
        if unknown:
            raise ValueError(f"the output layer knows no {', '.join(unknown)} of a token, but {', '.join(sorted(NAMES))}")
        self._names = sorted(names)
        self.by_name: dict[str, Tensor] = {}

    def begin(self, num_tokens: int, device: torch.device) -> None:
        """Make room for the values of that many tokens."""
        self.by_name = {name: torch.zeros(num_tokens, device=device) for name in self._names}

    def sums(self, blocks: Sequence[slice], num_tokens: int) -> Tensor:
        """Memory [N, 5, C] for the sums of `Kernels.read_logits` of each block."""
        return torch.empty(len(blocks), _SUMS, num_tokens, device=next(iter(self.by_name.values())).device)

    def take(
        self, part: slice, sums_N5C: Tensor, blocks: Sequence[slice], local_C: Tensor, target_logit_C: Tensor, group: Any
    ) -> None:
        """Values of the tokens of `part` from their sums; `local_C` are their targets as places of this rank's share."""
        values = _values(sums_N5C, blocks, local_C, target_logit_C, group)
        for name, value_R in self.by_name.items():
            value_R[part] = values[name]

    def spread(self, held_M: Tensor, num_tokens: int, group: Any) -> None:
        """Turn the values of tokens `held_M` into those of all R, of which the ranks of `group` hold some each."""
        spread_KR = torch.zeros(len(self.by_name), num_tokens, device=held_M.device)
        for row_R, value_M in zip(spread_KR, self.by_name.values(), strict=True):
            row_R[held_M] = value_M
        self.by_name = dict(zip(self.by_name, _reduced(spread_KR, group, dist.ReduceOp.SUM), strict=True))


def _values(
    sums_N5C: Tensor, blocks: Sequence[slice], local_C: Tensor, target_logit_C: Tensor, group: Any
) -> dict[str, Tensor]:
    """All values of C tokens, whose sums over the vocabulary are added over blocks and the ranks of `group`."""
    highest_NC, first_NC, total_NC, weighted_NC, squares_NC = sums_N5C.unbind(1)
    starts_N1 = (torch.arange(len(blocks), device=local_C.device) * blocks[0].stop)[:, None]
    stops_N1 = (starts_N1 + blocks[0].stop).clamp(max=blocks[-1].stop)
    before_NC = torch.where(stops_N1 <= local_C, highest_NC, -torch.inf)
    is_here_NC = (starts_N1 <= local_C) & (local_C < stops_N1)
    before_NC = before_NC.masked_fill(is_here_NC & (first_NC == 0), torch.inf)  # no target there is the most probable one
    highest_C, before_C = _reduced(torch.stack((highest_NC.amax(0), before_NC.amax(0))), group, dist.ReduceOp.MAX)
    below_NC = highest_C - highest_NC
    scale_NC = below_NC.neg().exp()
    here = scale_NC * total_NC, scale_NC * (weighted_NC + below_NC * total_NC), scale_NC.square() * squares_NC
    total_C, weighted_C, squares_C = _reduced(torch.stack([one_NC.sum(0) for one_NC in here]), group, dist.ReduceOp.SUM)
    log_total_C = total_C.log()
    return {
        "entropy": log_total_C + weighted_C / total_C,  # -log p is (highest - logit) + log(total)
        "log_sum_squares": squares_C.log() - 2 * log_total_C,
        "is_most_probable": ((target_logit_C >= highest_C) & (target_logit_C > before_C)).float(),
    }


def _reduced(values: Tensor, group: Any, op: Any) -> Tensor:
    """`values`, reduced in place over the ranks of `group`."""
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(values, op=op, group=group)
    return values

"""RMSNorm of queries or keys over the channels of all their heads, of which tensor-parallel ranks hold some each.

Legend: S tokens, N heads of this rank, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from nemotron_dpo.kernels.norm import rms_norm


class NormOverHeads(nn.Module):
    """Takes the arguments that megatron-core passes for a norm of one head, of which there are `heads` on all ranks.

    The weight is whole on every rank, as megatron-core has it of each q_layernorm and k_layernorm, whose gradients it sums.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float, *, heads: int, **_: Any) -> None:
        super().__init__()
        assert config.normalization == "RMSNorm"
        self.eps, self.zero_centered = eps, config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(torch.ones(heads * hidden_size, dtype=config.params_dtype))

    def forward(self, x_SND: Tensor) -> Tensor:
        """x [S, 1, N, D] -> the same shape and dtype."""
        flat = x_SND.flatten(2)
        group: Any = parallel_state.get_tensor_model_parallel_group()
        if group.size() == 1:
            return rms_norm(flat, self.weight, self.eps, self.zero_centered).view_as(x_SND)
        squares = _SumOverRanks.apply(flat.float().square().sum(-1, keepdim=True), group)
        gain = self.weight.chunk(group.size())[group.rank()].float() + (1 if self.zero_centered else 0)
        normed = flat.float() * torch.rsqrt(squares / len(self.weight) + self.eps) * gain
        return normed.to(x_SND.dtype).view_as(x_SND)


class _SumOverRanks(torch.autograd.Function):
    """The sum of what each rank has. All of them go on with it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(part, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _summed(grads[0], ctx.group), None


def _summed(part: Tensor, group: Any) -> Tensor:
    total = part.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total

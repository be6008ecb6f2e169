"""RMSNorm and LayerNorm of ours for megatron-core's layer specs, where Transformer Engine and Apex are not needed.

megatron-core's wrapper of the torch norms refuses sequence parallelism and zero-centred weights; these take both. Under
sequence parallelism a tensor-parallel rank sees a part of the tokens: weights are marked so that their gradients are summed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemotron_dpo.kernels.norm import rms_norm


class Norm(nn.Module):
    """The norm that `config.normalization` names over the last axis; takes the arguments that layer specs pass."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.shape, self.eps, self.zero_centered = (hidden_size,), eps, config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        with_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype)) if with_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined] - megatron-core's mark on a parameter

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> the same shape and dtype."""
        if self.bias is None:
            return rms_norm(x, self.weight, self.eps, self.zero_centered)
        if self.zero_centered:  # in float32: one plus a small bfloat16 is one
            bias = self.bias.float()
            return F.layer_norm(x.float(), self.shape, self.weight.float() + 1, bias, self.eps).to(x.dtype)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

"""The experts of a mixture as grouped matrix products: one kernel a projection instead of one an expert, for GPUs.

Parameters and checkpoint keys are SequentialMLP's own.

Legend: T tokens sorted by expert, E local experts, K input features.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from nemotron_dpo.kernels.grouped_linear import grouped_linear


class GroupedExperts(SequentialMLP):
    """megatron-core's SequentialMLP without biases, whose experts compute together."""

    def forward(self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor) -> Any:
        """Hidden states [T, K] of the tokens of expert 0, then 1, and so on, and their probabilities [T] -> ([T, K], None)."""
        x_TK, experts = permuted_local_hidden_states, list[Any](self.local_experts)
        if not len(x_TK) or not all(_is_plain(expert) for expert in experts) or not _is_known(self.config):
            return super().forward(x_TK, tokens_per_expert, permuted_probs)
        ends_E = tokens_per_expert.to(x_TK.device).cumsum(0).to(torch.int32)
        hidden = grouped_linear(x_TK, ends_E, [expert.linear_fc1.weight for expert in experts])
        if self.config.gated_linear_unit:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.config.activation_func(gate) * up
        else:
            hidden = self.config.activation_func(hidden)
        hidden = (hidden * permuted_probs[:, None]).to(x_TK.dtype)
        return grouped_linear(hidden, ends_E, [expert.linear_fc2.weight for expert in experts]), None


def _is_known(config: Any) -> bool:
    """Whether experts are without biases, bounds and offsets, as they are computed here."""
    return not config.add_bias_linear and config.activation_func_clamp_value is None and not config.glu_linear_offset


def _is_plain(expert: Any) -> bool:
    """Whether an expert has no adapters."""
    return isinstance(expert.linear_fc1, ColumnParallelLinear) and isinstance(expert.linear_fc2, RowParallelLinear)

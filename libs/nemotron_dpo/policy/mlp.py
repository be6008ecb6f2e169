"""The gated feed-forward layer, which keeps its first product for the backward pass and nothing else.

What the activation makes of that, half its size, is made again when the second product's gradient asks for it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from nemotron_dpo.kernels.activation import through_swiglu


class GatedMLP(MLP):
    """megatron-core's MLP; where the activation is a gated SiLU without biases it is computed by our kernels."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any) -> Any:
        """Hidden states [S, 1, H] -> (the same shape, bias or None)."""
        config = self.config
        plain = config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
        if not plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale=per_token_scale, **kwargs)
        gate_and_up, _ = self.linear_fc1(hidden_states)
        return through_swiglu(gate_and_up, self.linear_fc2)

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
        if config.add_bias_linear and per_token_scale is not None:
            return self._weighed(hidden_states, per_token_scale), None
        plain = config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
        plain = plain and config.activation_func_clamp_value is None and not config.glu_linear_offset
        if not plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale=per_token_scale, **kwargs)
        gate_and_up, _ = self.linear_fc1(hidden_states)
        return through_swiglu(gate_and_up, self.linear_fc2)

    def _weighed(self, hidden_states: Tensor, scale_T: Tensor) -> Tensor:
        """An expert with biases, times its tokens' weights; megatron-core adds the last bias where autograd forbids it."""
        config, (x, bias) = self.config, self.linear_fc1(hidden_states)
        gate, up = (x + bias).chunk(2, -1)
        if (bound := config.activation_func_clamp_value) is not None:
            gate, up = gate.clamp(max=bound), up.clamp(-bound, bound)
        mixed = config.activation_func(gate) * (up + config.glu_linear_offset)
        out, out_bias = self.linear_fc2((mixed * scale_T[:, None]).to(mixed.dtype))
        return out + (out_bias * scale_T[:, None]).to(out.dtype)

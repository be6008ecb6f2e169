"""Mamba-2's mixer over packed pairs, by our kernels: the state at a prompt's end starts both of its responses.

Parameters and their names are those of megatron-core's MambaMixer, which needs Triton and mamba_ssm to be imported.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), Z rows of
in_proj, C channels of the convolution, W its width; N heads, D channels of a head, G groups, K states: of this tensor-parallel
rank, and between tokens of this context-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from nemotron_dpo.kernels.gated_norm import gated_norm
from nemotron_dpo.kernels.recurrence import causal_conv, scan
from nemotron_dpo.policy.heads_for_tokens import HeadsForTokens
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.stacked_rows import sharded_recurrence
from nemotron_dpo.policy.sublayers.mamba import Mamba


class PairMixer(nn.Module):
    """The mixer of one recurrent layer, its heads divided over tensor-parallel ranks; `kind` has the sizes of the whole."""

    def __init__(self, config: TransformerConfig, kind: Mamba, pg_collection: Any) -> None:
        super().__init__()
        self.config, self.kind, self.tp_group = config, kind, pg_collection.tp
        ranks, dtype = pg_collection.tp.size(), config.params_dtype
        self.parts = {name: size // ranks for name, size in kind.parts.items()}
        self.num_heads, self.num_groups, channels = (n // ranks for n in (kind.num_heads, kind.num_groups, kind.channels))
        conv, inputs, stacked = kind.conv_channels // ranks, config.hidden_size, sum(kind.parts.values())
        linear: dict[str, Any] = {"config": config, "init_method": config.init_method, "bias": False, "tp_group": self.tp_group}
        self.in_proj = ColumnParallelLinear(inputs, stacked, gather_output=False, **linear)
        self.conv1d = nn.Conv1d(conv, conv, kind.conv_width, groups=conv, dtype=dtype)  # it holds the weights alone
        self.A_log, self.D, self.dt_bias = (nn.Parameter(torch.zeros(self.num_heads, dtype=dtype)) for _ in range(3))
        self.norm = GatedNorm(channels, self.num_groups, kind.eps, dtype)
        self.out_proj = RowParallelLinear(kind.channels, inputs, input_is_parallel=True, skip_bias_add=True, **linear)
        for parameter in (*self.conv1d.parameters(), self.A_log, self.D, self.dt_bias, self.norm.weight):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)

    def forward(self, hidden: Tensor, row: PackedRow) -> Tensor:
        """Hidden states [L, 1, H] -> the same; under sequence parallelism this rank's part of L."""
        zxbcdt_LZ = self.in_proj(hidden)[0][:, 0]
        z_LC, xbcdt_L = zxbcdt_LZ.split([self.parts["z"], zxbcdt_LZ.shape[1] - self.parts["z"]], dim=1)
        exchange = HeadsForTokens.of(row, [self.parts[name] for name in ("x", "B", "C", "dt")])
        y_LC = exchange.back(self._mix(exchange.forth(xbcdt_L), exchange, row))
        return self.out_proj(self.norm(y_LC, z_LC)[:, None])[0]

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        """The entries that megatron-core's MambaMixer has: what is stacked in in_proj and in the convolution has one a part."""
        return sharded_recurrence(self, prefix, sharded_offsets, metadata)

    def _mix(self, xbcdt_S: Tensor, exchange: HeadsForTokens, row: PackedRow) -> Tensor:
        """What heads make of all tokens of a row, [S, N * D]."""
        sizes, chunks = exchange.sizes, row.chunks_of_recurrence
        xbc_SC, dt_SN = xbcdt_S.split([sum(sizes[:3]), sizes[3]], dim=1)
        assert self.conv1d.bias is not None
        weight_CW, bias_C = exchange.rows(self.conv1d.weight[:, 0], 3), exchange.rows(self.conv1d.bias, 3)
        xbc_SC = F.silu(causal_conv(xbc_SC, weight_CW, bias_C, chunks))
        x_S, b_S, c_S = xbc_SC.split(sizes[:3], dim=1)
        A_log_N, D_N, bias_N = (exchange.heads(parameter).float() for parameter in (self.A_log, self.D, self.dt_bias))
        dt_SN = F.softplus(dt_SN.float() + bias_N)  # not clamped: transformers' floor under it is not Megatron's
        x_SND = x_S.unflatten(1, (-1, self.kind.head_size))
        b_SGK, c_SGK = (part.unflatten(1, (-1, self.kind.state_size)) for part in (b_S, c_S))
        return scan(x_SND, dt_SN, -torch.exp(A_log_N), b_SGK, c_SGK, D_N, chunks).flatten(1)


class GatedNorm(nn.Module):
    """The norm between the recurrence and out_proj."""

    def __init__(self, channels: int, num_groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight = nn.Parameter(torch.ones(channels, dtype=dtype))

    def forward(self, y_LC: Tensor, z_LC: Tensor) -> Tensor:
        return gated_norm(y_LC, z_LC, self.weight, self.num_groups, self.eps)

"""The gated delta net over packed pairs, by our kernels: the state at a prompt's end starts both of its responses.

Parameters, their names and their entries in checkpoints are those of megatron-core's GatedDeltaNet, which needs fla and refuses
packed rows. Its out_norm is zero-centred, as all norms of the models that have it, and its weight is float32: less one in
bfloat16 would lose digits of what transformers stores. What multiplies is that weight, one more, in the policy's precision.

Legend: S packed tokens, L those that this context-parallel rank holds (all of them without context parallelism), C channels of
the convolution, W its width; G key heads of K channels, N value heads of D: of this tensor-parallel rank, and between tokens of
this context-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from nemotron_dpo.kernels.norm import rms_norm
from nemotron_dpo.kernels.normed_gate import normed_gate
from nemotron_dpo.kernels.recurrence import causal_conv, gated_delta
from nemotron_dpo.policy.heads_for_tokens import HeadsForTokens
from nemotron_dpo.policy.rows import PackedRow
from nemotron_dpo.policy.stacked_rows import sharded_recurrence
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta

_EPS = 1e-6  # under the lengths of queries and keys, in transformers and fla


class PairGatedDelta(nn.Module):
    """A layer's gated delta net in the place of its attention; `kind` has the sizes of the whole."""

    def __init__(self, config: TransformerConfig, kind: GatedDelta, pg_collection: Any, **_: Any) -> None:
        super().__init__()
        self.config, self.kind, self.tp_group = config, kind, pg_collection.tp
        ranks, dtype, inputs = pg_collection.tp.size(), config.params_dtype, config.hidden_size
        self.parts = {name: size // ranks for name, size in kind.parts.items()}
        heads, conv = kind.num_value_heads // ranks, kind.conv_channels // ranks
        linear: dict[str, Any] = {"config": config, "init_method": config.init_method, "bias": False, "tp_group": self.tp_group}
        self.in_proj = ColumnParallelLinear(inputs, sum(kind.parts.values()), gather_output=False, **linear)
        self.conv1d = nn.Conv1d(conv, conv, kind.conv_width, groups=conv, bias=False, dtype=dtype)  # it holds the weight alone
        self.A_log, self.dt_bias = (nn.Parameter(torch.zeros(heads, dtype=dtype)) for _ in range(2))
        self.out_norm = HeadNorm(kind.value_size)
        self.out_proj = RowParallelLinear(kind.channels, inputs, input_is_parallel=True, skip_bias_add=True, **linear)
        for parameter in (self.conv1d.weight, self.A_log, self.dt_bias):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)

    def forward(self, hidden: Tensor, *_: Any, packed_seq_params: PackedRow, **__: Any) -> tuple[Tensor, Tensor | None]:
        """Hidden states [L, 1, H] -> (the same, no bias); under sequence parallelism this rank's part of L."""
        row, parts = packed_seq_params, self.parts
        conv, heads = (tuple(parts[name] for name in names) for names in (self.kind.conv_parts, ("beta", "alpha")))
        qkv_LC, z_L, rates_L = self.in_proj(hidden)[0][:, 0].split([sum(conv), parts["z"], sum(heads)], dim=1)
        of_qkv, of_rates = HeadsForTokens.of(row, conv), HeadsForTokens.of(row, heads)
        y_L = of_qkv.back(self._mix(of_qkv.forth(qkv_LC), of_rates.forth(rates_L), of_qkv, row))
        y_LND, z_LND = (x.unflatten(1, (-1, self.kind.value_size)) for x in (y_L, z_L))
        gain_D = _as_stored(self.out_norm.weight + 1, self.A_log.dtype)
        gain_D = copy_to_tensor_model_parallel_region(gain_D, self.tp_group)  # ranks have other heads each
        return self.out_proj(normed_gate(y_LND, z_LND, gain_D, self.kind.eps).flatten(1)[:, None])

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        """The entries that megatron-core's GatedDeltaNet has: what in_proj and the convolution stack has one a part."""
        return sharded_recurrence(self, prefix, sharded_offsets, metadata, whole=("out_norm.weight",))

    def _mix(self, qkv_SC: Tensor, rates_S: Tensor, exchange: HeadsForTokens, row: PackedRow) -> Tensor:
        """What heads make of all tokens of a row, [S, N * D]."""
        chunks = row.chunks_of_recurrence
        qkv_SC = F.silu(causal_conv(qkv_SC, exchange.rows(self.conv1d.weight[:, 0], 3), None, chunks))
        q_S, k_S, v_S = qkv_SC.split(exchange.sizes, dim=1)
        beta_SN, alpha_SN = rates_S.float().chunk(2, dim=1)
        A_log_N, bias_N = (exchange.heads(parameter).float() for parameter in (self.A_log, self.dt_bias))
        g_SN = -torch.exp(A_log_N) * F.softplus(alpha_SN + bias_N)
        size = self.kind.key_size
        q_SGK, k_SGK = (_of_length(x.unflatten(1, (-1, size)), length) for x, length in ((q_S, size**-0.5), (k_S, 1.0)))
        v_SND = v_S.contiguous().unflatten(1, (-1, self.kind.value_size))  # a view keeps all it is cut from
        return gated_delta(q_SGK, k_SGK, v_SND, g_SN, torch.sigmoid(beta_SN), chunks).flatten(1)


class HeadNorm(nn.Module):
    """The weight of the norm of each head, less one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


def _as_stored(gain_D: Tensor, dtype: torch.dtype) -> Tensor:
    """The gain as a folder of the policy's precision has it, so that what trains is what is written; its gradient passes."""
    return gain_D if dtype == gain_D.dtype else gain_D + (gain_D.to(dtype).float() - gain_D).detach()


def _of_length(x_SGK: Tensor, length: float) -> Tensor:
    """x / sqrt(sum of x^2 + eps) * length, which is a norm by the mean with another epsilon and gain."""
    size = x_SGK.shape[-1]
    gain_K = torch.full((size,), length * size**-0.5, device=x_SGK.device)
    return rms_norm(x_SGK.contiguous(), gain_K, _EPS / size, zero_centered=False)

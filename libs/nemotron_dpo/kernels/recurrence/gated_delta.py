"""The gated delta rule over a packed row, as Qwen3-Next and its like have it.

Legend: S packed tokens, N value heads, of which N / G share each of G heads of queries and keys, D value size, K key size.
"""

from __future__ import annotations

from torch import Tensor

from nemotron_dpo.kernels.chosen import kernels
from nemotron_dpo.kernels.chunks import Chunks


def gated_delta(q_SGK: Tensor, k_SGK: Tensor, v_SND: Tensor, g_SN: Tensor, beta_SN: Tensor, chunks: Chunks) -> Tensor:
    """y [S, N, D] of h = exp(g) h, h = h + k (beta (v - h^T k))^T and y = h^T q along each path, from h = 0.

    That is Yang, Kautz and Hatamizadeh 2024, equation 10. Queries and keys come as they are taken: normalized, queries scaled.
    g is the logarithm of a decay and not above zero. Sums are float32, y is of v's dtype. Tokens in no piece get zero.
    """
    return kernels().gated_delta(q_SGK, k_SGK, v_SND, g_SN, beta_SN, chunks)

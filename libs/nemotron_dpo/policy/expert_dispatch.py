"""Let megatron-core's mixture of experts run without CUDA or without Transformer Engine. Where both exist nothing is changed.

The router reads a name that its module defines only if Transformer Engine is installed (megatron-core 0.16).
The dispatcher copies its token counts to the host on a separate CUDA stream. Without CUDA the counts are on the host already.
Then they only have to become numpy arrays, which the all-to-all expects as split sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils

from nemotron_dpo.policy.patches import overwrite


def prepare_dispatch() -> None:
    """Prepare this process to build policies with a mixture of experts. Idempotent."""
    if not hasattr(moe_utils, "te_general_gemm"):
        overwrite("megatron.core.transformer.moe.moe_utils:te_general_gemm", None)
    if torch.cuda.is_available():
        return
    dispatcher = "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher"
    overwrite(f"{dispatcher}.cuda_dtoh_stream", _NO_STREAM)  # if it were None, the dispatcher would ask CUDA for a stream
    overwrite(f"{dispatcher}._maybe_dtoh_and_synchronize", _counts_on_host)


_NO_STREAM: Any = object()


def _counts_on_host(self: Any, point: str, tokens_per_expert: torch.Tensor | None = None) -> torch.Tensor | None:
    if point == self.cuda_dtoh_point:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            counts = getattr(self, name)
            if torch.is_tensor(counts):
                setattr(self, name, counts.numpy())
    return tokens_per_expert

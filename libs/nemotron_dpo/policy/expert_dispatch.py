"""Let megatron-core's mixture of experts run without CUDA and without Transformer Engine; does nothing where they are.

The router asks for a name that its module has only where Transformer Engine is installed (megatron-core 0.16).
The dispatcher copies its counts of tokens to the host on a CUDA stream of its own. Without CUDA they are there already, and
all that is left of that step is their form: numpy, as the all-to-all wants its split sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils

from nemotron_dpo.policy.patches import overwrite


def prepare_dispatch() -> None:
    """Prepare this process to build mixtures of experts. Idempotent."""
    if not hasattr(moe_utils, "te_general_gemm"):
        overwrite("megatron.core.transformer.moe.moe_utils:te_general_gemm", None)
    if torch.cuda.is_available():
        return
    dispatcher = "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher"
    overwrite(f"{dispatcher}.cuda_dtoh_stream", _NO_STREAM)  # only its absence would make the dispatcher ask CUDA for one
    overwrite(f"{dispatcher}._maybe_dtoh_and_synchronize", _counts_on_host)


_NO_STREAM: Any = object()


def _counts_on_host(self: Any, point: str, tokens_per_expert: torch.Tensor | None = None) -> torch.Tensor | None:
    if point == self.cuda_dtoh_point:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            counts = getattr(self, name)
            if torch.is_tensor(counts):
                setattr(self, name, counts.numpy())
    return tokens_per_expert

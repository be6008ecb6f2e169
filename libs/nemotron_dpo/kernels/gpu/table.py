"""The table of kernels in Triton, over torch's operations."""

from __future__ import annotations

from dataclasses import replace

import torch

from nemotron_dpo.kernels.protocol import Kernels, Unavailable
from nemotron_dpo.kernels.torch_ops.table import torch_kernels


def gpu_kernels() -> Kernels:
    """The table, once one of its kernels was compiled and did run. Raises Unavailable."""
    try:
        import triton  # type: ignore[reportMissingImports] - it comes with torch for CUDA alone

        from nemotron_dpo.kernels.gpu import members

        members.swiglu(torch.zeros(1, 64, device="cuda"), None).any().item()  # which waits for it
    except Exception as error:  # Triton starts a C compiler, ptxas and the driver: each fails in its own way
        raise Unavailable(f"Triton does not work here: {' '.join(str(error).split()) or type(error).__name__}") from None
    torchs = torch_kernels()
    return replace(
        torchs,
        name="gpu",
        identity=f"gpu, triton {triton.__version__}, {torchs.identity}",
        rms_norm=members.rms_norm,
        rms_norm_backward=members.rms_norm_backward,
        swiglu=members.swiglu,
        swiglu_backward=members.swiglu_backward,
        rotate=members.rotate,
        read_logits=members.read_logits,
    )

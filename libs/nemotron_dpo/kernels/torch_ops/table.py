"""The table of torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

from nemotron_dpo.kernels.protocol import Kernels
from nemotron_dpo.kernels.scratch import scratch
from nemotron_dpo.kernels.torch_ops.activation import swiglu, swiglu_backward
from nemotron_dpo.kernels.torch_ops.attention import attend
from nemotron_dpo.kernels.torch_ops.convolution import convolve, convolve_backward
from nemotron_dpo.kernels.torch_ops.gated_delta import gated_delta
from nemotron_dpo.kernels.torch_ops.logits import read_logits
from nemotron_dpo.kernels.torch_ops.mamba2 import scan
from nemotron_dpo.kernels.torch_ops.mamba2_backward import scan_backward
from nemotron_dpo.kernels.torch_ops.norm import rms_norm, rms_norm_backward
from nemotron_dpo.kernels.torch_ops.rotary import rotate


def identity() -> str:
    """torch's version and the processor: its own operations take other instructions on another one."""
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} on {place}"


def add_rounded(total: Tensor, part: Tensor) -> None:
    """As `Kernels.add_rounded`."""
    total += scratch("wide product", *part.shape, device=part.device).copy_(part)  # torch adds one dtype many times faster


def torch_kernels() -> Kernels:
    """The table; every machine has it."""
    return Kernels(
        name="torch",
        identity=identity(),
        attend=attend,
        rms_norm=rms_norm,
        rms_norm_backward=rms_norm_backward,
        swiglu=swiglu,
        swiglu_backward=swiglu_backward,
        rotate=rotate,
        read_logits=read_logits,
        scan=scan,
        scan_backward=scan_backward,
        gated_delta=gated_delta,
        convolve=convolve,
        convolve_backward=convolve_backward,
        add_rounded=add_rounded,
    )

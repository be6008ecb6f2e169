"""The gated activation by torch's operations; silu(gate) of an activation that is made again serves its gradient too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron_dpo.kernels.scratch import scratch


def swiglu(gate_and_up: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu`."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up) if owner is None else _LAST.of(gate, owner) * up


def swiglu_backward(gate_and_up: Tensor, grad: Tensor, owner: object) -> Tensor:
    """As `Kernels.swiglu_backward`."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_and_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    torch.mul(_LAST.taken(gate, owner), grad, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
    return out


class LastSilu:
    """silu(gate) of the activation that was last made again, whose gradient is about to be asked for."""

    def __init__(self) -> None:
        self._owner: object = None

    def of(self, gate: Tensor, owner: object) -> Tensor:
        """Computed, and kept for `owner`; valid until another's is asked for."""
        self._owner = owner
        return torch.ops.aten.silu.out(gate, out=scratch("silu", *gate.shape, dtype=gate.dtype, device=gate.device))

    def taken(self, gate: Tensor, owner: object) -> Tensor:
        """What was computed for `owner`, if that was the last one and its memory keeps it (on a CPU); else computed."""
        if owner is None or self._owner is not owner or gate.device.type != "cpu":
            return self.of(gate, owner)
        return scratch("silu", *gate.shape, dtype=gate.dtype)


_LAST = LastSilu()

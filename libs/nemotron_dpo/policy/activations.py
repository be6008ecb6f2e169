"""Activation functions by the names that an architecture has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_relu(x: Tensor) -> Tensor:
    """relu(x) squared; megatron-core's is torch.compile'd, whose kernels differ between training and inference."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 * x); megatron-core's is torch.compile'd as well."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu2": squared_relu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}

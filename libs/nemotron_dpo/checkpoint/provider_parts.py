"""What the fields of all of Megatron-Bridge's providers share: symbols, activations, precisions."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from nemotron_dpo.errors import UserError

BRIDGE = "megatron.bridge.models"
ACTIVATIONS = {
    "silu": "torch.nn.functional.silu",
    "relu2": "megatron.core.activations.squared_relu",
    "gelu_tanh": "megatron.core.activations.fast_gelu",
    "quick_gelu": "megatron.core.fusions.fused_bias_geglu.quick_gelu",
}
_DTYPES = ("bfloat16", "float16", "float32")


def symbol(name: str) -> dict[str, Any]:
    """How Megatron-Bridge writes a function, class or dtype that it looks up and does not call."""
    return {"_call_": False, "_target_": name}


def precision(dtype: str) -> dict[str, Any]:
    """The fields that say a precision."""
    named = symbol(f"torch.{dtype}")
    kinds = {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
    return {"autocast_dtype": named, "params_dtype": named, "pipeline_dtype": named, **kinds}


def read_dtype(model: Mapping[str, Any]) -> str:
    """The dtype as Bridge derives it: from the two flags, and from `params_dtype` where neither is set."""
    if model.get("bf16"):
        return "bfloat16"
    if model.get("fp16"):
        return "float16"
    name = model["params_dtype"]["_target_"].removeprefix("torch.")
    if name not in _DTYPES:
        raise UserError(f"params_dtype {name!r} is not supported", remedy=f"one of {', '.join(_DTYPES)} is")
    return name


def read_activation(model: Mapping[str, Any]) -> str:
    """The activation, by our name for it. Raises UserError where it is none of ours."""
    name = str(model["activation_func"]["_target_"])
    for activation, known in ACTIVATIONS.items():
        if name.rpartition(".")[2] == known.rpartition(".")[2]:
            return activation
    raise UserError(f"activation_func {name!r} is not supported", remedy=f"one of {', '.join(ACTIVATIONS.values())} is")


def largest_power_of_two(size: int, limit: int = 128) -> int:
    """The largest power of two up to `limit` that divides `size`. A tool that pads to it leaves the vocabulary as it is."""
    return prod(2 for bit in range(1, limit.bit_length()) if size % 2**bit == 0)

"""Which linear layers of a policy LoRA (Hu et al., 2021) adapts. Knows no torch: what a run costs is asked before it is loaded.

Only the linear layers of the decoder take part: never embeddings, output layer, norms or routers. The names of settings and of
modules are Megatron-Bridge's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture

FIELD = "policy.megatron_cfg.peft"
Init = Literal["xavier", "normal", "kaiming", "uniform"]


@dataclass(frozen=True)
class Lora:
    """Which layers are adapted and how.

    `target_modules` are names of layers ("linear_qkv") or patterns over whole names ("*.layers.0.*.linear_qkv", layers counted
    over the whole model); empty means all but `exclude_modules`, of which one of the two must be empty. `dtype` None is the
    policy's own.
    """

    dim: int = 32
    alpha: int = 32
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    a_init: Init = "xavier"
    dtype: Literal["bfloat16", "float32"] | None = None

    def picks(self, name: str) -> bool:
        """Whether the linear layer of this global name is adapted."""
        if self.target_modules:
            return any(_matches(pattern, name) for pattern in self.target_modules)
        return not any(_matches(pattern, name) for pattern in self.exclude_modules)


def adapter_parameters(lora: Lora, architecture: Architecture, layers: slice = slice(None), *, met: bool = False) -> float:
    """Parameters of the adapters of some layers, all where none are named; with `met`, those that a token meets on average."""
    numbers = range(len(architecture.layers))[layers]
    return sum(
        lora.dim * (linear.inputs + linear.outputs) * (linear.met / linear.copies if met else 1)
        for number, linear in architecture.linears()
        if number in numbers
        for name in linear.names
        if lora.picks(_global(number, name))
    )


def same_on_all_layers(lora: Lora, architecture: Architecture) -> bool:
    """Whether a checkpoint can stack the layers' adapters, as megatron-core does with layers that are alike."""
    picked: list[set[str]] = [set() for _ in architecture.layers]
    for number, linear in architecture.linears():
        picked[number] |= {name for name in linear.names if lora.picks(_global(number, name))}
    return all(layer == picked[0] for layer in picked)


def spelled_out(lora: Lora, architecture: Architecture) -> Lora:
    """`lora` naming its layers one by one: in Megatron-Bridge "all" takes in the output layer too."""
    names = linear_names(architecture)
    left = {_own(name) for name in names if not lora.picks(name)}
    targets = {own if (own := _own(name)) not in left else name for name in names if lora.picks(name)}
    return replace(lora, target_modules=tuple(sorted(targets)), exclude_modules=())


def check_targets(lora: Lora, architecture: Architecture) -> None:
    """Raise UserError where a pattern matches nothing in the whole model."""
    names = linear_names(architecture)
    for field, patterns in (("target_modules", lora.target_modules), ("exclude_modules", lora.exclude_modules)):
        for pattern in patterns:
            if not any(_matches(pattern, name) for name in names):
                known = ", ".join(sorted({_own(name) for name in names}))
                raise UserError(f"{pattern!r} matches no linear layer", field=f"{FIELD}.{field}", remedy=f"there are {known}")


def linear_names(architecture: Architecture) -> list[str]:
    """The names of the linear layers of the whole model."""
    return [_global(number, name) for number, linear in architecture.linears() for name in linear.names]


def _global(number: int, name: str) -> str:
    return f"decoder.layers.{number}.{name}"


def _own(name: str) -> str:
    return name.rpartition(".")[2]


def _matches(pattern: str, name: str) -> bool:
    """Megatron-Bridge's rule: the layer's own name, or a whole name in which * stands for anything."""
    return pattern == _own(name) or re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None

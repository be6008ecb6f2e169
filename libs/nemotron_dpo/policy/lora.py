"""LoRA (Hu et al., 2021): which linear layers of a frozen policy are adapted, putting adapters beside them, merging them in.

Only the linear layers of the decoder take part: never embeddings, output layer, norms or routers. The names of settings and of
modules are Megatron-Bridge's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.lora_layers import Adapter, Init, LoraLinear

FIELD = "policy.megatron_cfg.peft"
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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


@dataclass(frozen=True)
class Base:
    """Where the frozen weights came from (a path or a Hugging Face id), and their digest."""

    location: str
    digest: str


@dataclass(frozen=True)
class Adapted:
    """What a policy with adapters knows of itself, and a checkpoint of it must: it holds the adapters alone."""

    lora: Lora
    base: Base


def adapt(model: nn.Module, adapted: Adapted, seed: int = 42) -> None:
    """Freeze `model` (this rank's part of a policy, its weights loaded) and put adapters beside the layers `adapted` names.

    A's first values depend on the seed and the layer's name alone, not on how the model is divided. Raises UserError where a
    pattern matches no layer, or a layer that cannot be adapted.
    """
    lora, linears = adapted.lora, list(_linears(model))
    names, config = [name for name, *_ in linears], _config(model)
    num_layers = config.num_layers
    _check(lora, names, num_layers)
    model.requires_grad_(False)
    for name, parent, child in linears:
        if lora.picks(name):
            linear = getattr(parent, child)
            gated = config.gated_linear_unit and child == "linear_fc1"
            adapter = Adapter(linear, lora.dim, lora.alpha, _DTYPES[lora.dtype] if lora.dtype else linear.weight.dtype)
            adapter.initialize(lora.a_init, f"{seed} {name}")
            setattr(parent, child, LoraLinear(linear, adapter, gated=gated))
    for embedding in (m for m in model.modules() if isinstance(m, LanguageModelEmbedding)):
        if config.recompute_granularity is not None:
            embedding.register_forward_hook(_needs_grad)
    config.hetereogenous_dist_checkpoint = not _same_on_all_layers(lora, names, num_layers)
    model.adapted = replace(adapted, lora=_spelled_out(lora, names, num_layers))  # type: ignore[assignment] - to torch any attribute is a tensor or a module


def adapted_of(model: nn.Module) -> Adapted | None:
    """What adapters the policy has; None where all of its weights are its own."""
    return getattr(model, "adapted", None)


def merge(model: nn.Module) -> None:
    """Make `model` plain again, its weights those of base and adapters together."""
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, LoraLinear):
                setattr(module, child, layer.merged())
    model.requires_grad_(True)
    _config(model).hetereogenous_dist_checkpoint = False
    del model.adapted


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers of this rank by their local names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def only_adapters(state: dict[str, Any]) -> dict[str, Any]:
    """The entries of a (sharded) state dict that belong to adapters."""
    return {key: value for key, value in state.items() if ".adapter." in key}


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(global name, parent, attribute) of every linear layer in this rank's transformer layers."""
    layers = [m for m in model.modules() if isinstance(m, TransformerLayer)]
    for layer in layers:
        for path, module in layer.named_modules():
            parent, _, child = path.rpartition(".")
            if isinstance(module, LoraLinear | ColumnParallelLinear | RowParallelLinear) and child != "to_wrap":
                yield f"decoder.layers.{layer.layer_number - 1}.{path}", layer.get_submodule(parent), child


def _same_on_all_layers(lora: Lora, names: Sequence[str], num_layers: int) -> bool:
    """Whether a checkpoint can stack the layers' adapters, as megatron-core does with layers that are alike."""
    picked = [{suffix for suffix in _suffixes(names) if lora.picks(f"decoder.layers.{n}.{suffix}")} for n in range(num_layers)]
    return all(layer == picked[0] for layer in picked)


def _spelled_out(lora: Lora, names: Sequence[str], num_layers: int) -> Lora:
    """`lora` naming its layers one by one: in Megatron-Bridge "all" takes in the output layer too."""
    everywhere = _everywhere(names, num_layers)
    left = {name.rpartition(".")[2] for name in everywhere if not lora.picks(name)}
    targets = {own if (own := name.rpartition(".")[2]) not in left else name for name in everywhere if lora.picks(name)}
    return replace(lora, target_modules=tuple(sorted(targets)), exclude_modules=())


def _everywhere(names: Sequence[str], num_layers: int) -> list[str]:
    """The names of the linear layers of the whole model, of which this rank has `names`."""
    return [f"decoder.layers.{n}.{suffix}" for n in range(num_layers) for suffix in sorted(_suffixes(names))]


def _suffixes(names: Sequence[str]) -> set[str]:
    """What the names of linear layers are within their transformer layer."""
    return {name.split(".", 3)[3] for name in names}


def _check(lora: Lora, names: Sequence[str], num_layers: int) -> None:
    """Every pattern must match something in the whole model, and no picked layer may be an expert's."""
    everywhere = _everywhere(names, num_layers)
    for field, patterns in (("target_modules", lora.target_modules), ("exclude_modules", lora.exclude_modules)):
        for pattern in patterns:
            if not any(_matches(pattern, name) for name in everywhere):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in everywhere}))
                raise UserError(f"{pattern!r} matches no linear layer", field=f"{FIELD}.{field}", remedy=f"there are {known}")
    if any("experts." in name and lora.picks(name) for name in everywhere):
        remedy = f"set {FIELD}.target_modules=[linear_qkv,linear_proj]"
        raise UserError("a mixture's experts cannot be adapted", field=FIELD, remedy=remedy)
    if not any(lora.picks(name) for name in names):
        raise UserError("leaves a pipeline stage without adapters", field=FIELD, remedy="adapt layers of every stage")


def _matches(pattern: str, name: str) -> bool:
    """Megatron-Bridge's rule: the layer's own name, or a whole name in which * stands for anything."""
    own = name.rpartition(".")[2]
    return pattern == own or re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _needs_grad(embedding: nn.Module, args: Any, hidden: Tensor) -> None:
    """Recomputation skips a layer's backward unless its input needs a gradient, which frozen embeddings' output does not."""
    if torch.is_grad_enabled():
        hidden.requires_grad_()


def _config(model: nn.Module) -> TransformerConfig:
    assert isinstance(model.config, TransformerConfig)
    return model.config

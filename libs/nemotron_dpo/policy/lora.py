"""LoRA (Hu et al., 2021): putting adapters beside linear layers of a frozen policy, and merging them in.

Which layers these are, `policy.lora_targets` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.gated_delta_net import PairGatedDelta
from nemotron_dpo.policy.lora_layers import Adapter, LoraLinear
from nemotron_dpo.policy.lora_targets import FIELD, Lora, check_targets, same_on_all_layers, spelled_out
from nemotron_dpo.policy.mamba_mixer import PairMixer
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.policy.recurrent_layer import RecurrentLayer

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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


def adapt(model: PairPolicy, adapted: Adapted, seed: int = 42) -> None:
    """Freeze `model` (this rank's part of a policy, its weights loaded) and put adapters beside the layers `adapted` names.

    A's first values depend on the seed and the layer's name alone, not on how the model is divided. Raises UserError where a
    pattern matches no layer.
    """
    lora, architecture, config = adapted.lora, model.architecture, model.config
    check_targets(lora, architecture)
    picked = [(name, parent, child) for name, parent, child in _linears(model) if lora.picks(name)]
    if not picked:
        raise UserError("leaves a pipeline stage without adapters", field=FIELD, remedy="adapt layers of every stage")
    model.requires_grad_(False)
    config.moe_router_bias_update_rate = 0.0  # an expert bias is of the base, which stays as it is
    for name, parent, child in picked:
        linear = getattr(parent, child)
        gated = config.gated_linear_unit and child == "linear_fc1"
        adapter = Adapter(linear, lora.dim, lora.alpha, _DTYPES[lora.dtype] if lora.dtype else linear.weight.dtype)
        adapter.initialize(lora.a_init, f"{seed} {name}")
        parts = parent.parts if isinstance(parent, PairMixer | PairGatedDelta) and child == "in_proj" else None
        setattr(parent, child, LoraLinear(linear, adapter, gated=gated, parts=parts))
    for embedding in (m for m in model.modules() if isinstance(m, LanguageModelEmbedding)):
        if config.recompute_granularity is not None:
            embedding.register_forward_hook(_needs_grad)
    config.hetereogenous_dist_checkpoint = not (architecture.is_uniform and same_on_all_layers(lora, architecture))
    model.adapted = replace(adapted, lora=spelled_out(lora, architecture))  # type: ignore[assignment] - to torch any attribute is a tensor or a module


def adapted_of(model: nn.Module) -> Adapted | None:
    """What adapters the policy has; None where all of its weights are its own."""
    return getattr(model, "adapted", None)


def merge(model: PairPolicy) -> None:
    """Make `model` plain again, its weights those of base and adapters together."""
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, LoraLinear):
                setattr(module, child, layer.merged())
    model.requires_grad_(True)
    model.config.hetereogenous_dist_checkpoint = not model.architecture.is_uniform
    del model.adapted


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers of this rank by their local names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def only_adapters(state: dict[str, Any]) -> dict[str, Any]:
    """The entries of a (sharded) state dict that belong to adapters."""
    return {key: value for key, value in state.items() if ".adapter." in key}


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(global name, parent, attribute) of every linear layer in this rank's transformer layers."""
    layers = [m for m in model.modules() if isinstance(m, TransformerLayer | RecurrentLayer)]
    for layer in layers:
        for path, module in layer.named_modules():
            parent, _, child = path.rpartition(".")
            if isinstance(module, LoraLinear | ColumnParallelLinear | RowParallelLinear) and child != "to_wrap":
                name = f"decoder.layers.{layer.layer_number - 1}.{_in_whole_model(path, layer)}"
                yield name, layer.get_submodule(parent), child


def _in_whole_model(path: str, layer: nn.Module) -> str:
    """A module's name within its layer, where an expert's number is that among all experts, not those of this rank."""
    experts, local, rest = path.partition("local_experts.")
    if not local:
        return path
    number, _, name = rest.partition(".")
    num_local: int = layer.get_submodule(experts.removesuffix(".")).num_local_experts  # type: ignore[assignment] - to torch any attribute is a tensor or a module
    return f"{experts}{local}{int(number) + num_local * parallel_state.get_expert_model_parallel_rank()}.{name}"


def _needs_grad(embedding: nn.Module, args: Any, hidden: Tensor) -> None:
    """Recomputation skips a layer's backward unless its input needs a gradient, which frozen embeddings' output does not."""
    if torch.is_grad_enabled():
        hidden.requires_grad_()

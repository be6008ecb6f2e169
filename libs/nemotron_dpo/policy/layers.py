"""Which modules a policy's layers are made of: what each kind of layer names, within megatron-core's own layer and block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor, nn

from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.mlp import GatedMLP
from nemotron_dpo.policy.norm import Norm
from nemotron_dpo.policy.recurrent_layer import RecurrentLayer, RecurrentSubmodules
from nemotron_dpo.policy.residual import ResidualAdd, add_without_gradients, scaled
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.mamba import Mamba
from nemotron_dpo.policy.weight_gradients import TokenEmbedding

_ADDS = {"self_attn_bda", "mlp_bda"}


def block_spec(architecture: Architecture, config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers that this pipeline stage builds, and the norm after the last of them."""
    first = get_transformer_layer_offset(config)
    layers = architecture.layers[first : first + get_num_layers_to_build(config)]
    specs = {layer: _layer_spec(layer, config, architecture.residual_scale) for layer in set(layers)}
    return TransformerBlockSubmodules(layer_specs=[specs[layer] for layer in layers], layer_norm=Norm)  # type: ignore[arg-type] - megatron-core takes the module itself too


def _layer_spec(layer: Layer, config: TransformerConfig, residual_scale: float) -> ModuleSpec:
    """megatron-core's layer, in which a sublayer that is missing does nothing; or ours for a recurrence alone."""
    fields: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for sublayer in layer.sublayers:
        modules, saved_as = sublayer.spec(config)
        fields, keys = {**fields, **modules}, {**keys, **saved_as}
    fields |= {name: scaled(fields[name], config, residual_scale) for name in _ADDS & fields.keys()}
    if isinstance(layer.mixer, Mamba):
        return ModuleSpec(RecurrentLayer, submodules=RecurrentSubmodules(**fields, sharded_state_dict_keys_map=keys))
    submodules = TransformerLayerSubmodules(**fields, sharded_state_dict_keys_map=keys)
    own = layer.feed_forward.config() if isinstance(layer.feed_forward, Dense) else {}
    if all(getattr(config, name) == value for name, value in own.items()):
        return ModuleSpec(TransformerLayer, submodules=submodules)
    return ModuleSpec(OwnLayer, params={"own": own}, submodules=submodules)


class OwnLayer(TransformerLayer):
    """megatron-core's layer, by sizes of its own in the place of those of the config that all layers share."""

    def __init__(self, config: TransformerConfig, *args: Any, own: Mapping[str, Any], **kwargs: Any) -> None:
        config = copy.copy(config)
        for name, value in own.items():
            setattr(config, name, value)
        super().__init__(config, *args, **kwargs)


class PairBlock(TransformerBlock):
    """megatron-core's block of layers, which by recompute_method "block" tells layers that are not computed again of tokens.

    megatron-core before 0.19 leaves their padding_mask out, by which routers are balanced.
    """

    _mask: Tensor | None = None

    def _checkpointed_forward(self, *args: Any, **kwargs: Any) -> Any:
        self._mask = kwargs.get("padding_mask")
        try:
            return super()._checkpointed_forward(*args, **kwargs)
        finally:
            self._mask = None

    def _get_layer(self, layer_number: int) -> Any:
        layer, mask = super()._get_layer(layer_number), self._mask
        if mask is None:
            return layer
        return lambda **given: layer(
            **{**given, "padding_mask": mask if given["padding_mask"] is None else given["padding_mask"]}
        )


class HybridBlock(PairBlock):
    """The same, whose last norm has the name that it has in a MambaStack."""

    @property
    def final_layernorm(self) -> Any:  # type: ignore[override] - it is an attribute there
        return self.final_norm


def specialize(model: nn.Module) -> None:
    """Let the parts that megatron-core names itself, and no spec can replace, compute our way; weights and keys stay theirs."""
    own: dict[type, type] = {MLP: GatedMLP, VocabParallelEmbedding: TokenEmbedding, TransformerBlock: PairBlock}
    for module in model.modules():
        module.__class__ = own.get(type(module), type(module))
        if any(isinstance(child, ResidualAdd) for child in module.children()):
            add_without_gradients(module)


def name_as_hybrid(model: GPTModel) -> None:
    """Give the parameters of `model` the names that those of megatron-core's MambaModel have."""
    block: Any = model.decoder
    norm = block.final_layernorm
    del block.final_layernorm
    block.final_norm = norm
    block.__class__ = HybridBlock


def mark_partitions(model: nn.Module) -> None:
    """Say along which axis each weight is split; megatron-core does so only where it also initialises the weight.

    Loading reads it, and so does the gradient norm, which must count replicated weights once.
    """
    axes = {TokenEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in model.modules():
        axis = axes.get(type(module))
        weight = getattr(module, "weight", None)
        if axis is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=axis, stride=1)


def mark_experts(model: nn.Module, layout: Layout) -> None:
    """Say over which ranks the gradients of experts are summed up, where megatron-core takes them for those of other layers.

    It does so where nobody divides the experts among ranks, though each may be divided by other ranks than other layers are.
    And it takes their biases for some whose gradient comes from parts of a sequence: it would sum up those of different
    experts, and count them once in the norm of all gradients.
    """
    divided = layout.expert > 1 or layout.expert_tensor not in (None, layout.tensor)
    for name, parameter in model.named_parameters():
        if divided and ".local_experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined] - megatron-core's marks on a parameter
            parameter.sequence_parallel = False  # type: ignore[attr-defined] - as above
            if name.endswith(".bias") and not getattr(parameter, "tensor_model_parallel", False):
                set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)


def scale_embeddings(model: GPTModel, architecture: Architecture) -> None:
    """Multiply what the embedding gives by a number, rounded to the weights' precision as Hugging Face's Gemma does, or not."""
    if model.pre_process and architecture.embedding_scale != 1.0:
        model.embedding.register_forward_hook(_times(architecture.embedding_scale, rounded=architecture.rounds_scale))


def _times(scale: float, *, rounded: bool) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, given, out: out * (torch.tensor(scale, dtype=out.dtype) if rounded else scale)

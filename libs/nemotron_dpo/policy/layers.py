"""Which modules a policy's layers are made of: megatron-core's local spec with our attention and norms in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor, nn

from nemotron_dpo.kernels.grouped_linear import is_fast
from nemotron_dpo.policy.attention import PairAttention
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.expert_dispatch import prepare_dispatch
from nemotron_dpo.policy.grouped_experts import GroupedExperts
from nemotron_dpo.policy.mlp import GatedMLP
from nemotron_dpo.policy.norm import Norm
from nemotron_dpo.policy.weight_gradients import TokenEmbedding


def block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers that this pipeline stage builds, and the norm after the last of them."""
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        normalization=config.normalization,
        qk_layernorm=config.qk_layernorm,
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm  # type: ignore[union-attr] - megatron-core types submodules loosely
    if config.num_moe_experts is not None:  # Transformer Engine fuses this norm into a dense layer only: so go the keys
        prepare_dispatch()
        if is_fast(device(), config.params_dtype):
            parts.mlp.submodules.experts.module = GroupedExperts  # type: ignore[union-attr] - megatron-core types submodules loosely
        del parts.sharded_state_dict_keys_map["pre_mlp_layernorm."]  # type: ignore[union-attr] - megatron-core types submodules loosely
    attention = parts.self_attention.submodules  # type: ignore[union-attr] - megatron-core types submodules loosely
    attention.core_attention = PairAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    layers = [layer] * get_num_layers_to_build(config)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm)  # type: ignore[arg-type] - megatron-core takes the module itself too


def specialize(model: nn.Module) -> None:
    """Let the parts that megatron-core names itself, and no spec can replace, compute our way; weights and keys stay theirs."""
    own: dict[type, type] = {MLP: GatedMLP, VocabParallelEmbedding: TokenEmbedding}
    for module in model.modules():
        module.__class__ = own.get(type(module), type(module))


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


def scale_embeddings(model: GPTModel, scale: float) -> None:
    """Multiply what the embedding gives by `scale`, rounded to the weights' precision as Hugging Face's Gemma does."""
    if model.pre_process and scale != 1.0:
        model.embedding.register_forward_hook(_times(scale))


def _times(scale: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, given, out: out * torch.tensor(scale, dtype=out.dtype)

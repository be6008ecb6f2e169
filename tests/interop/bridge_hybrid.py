"""Hybrids in Megatron-Bridge on a CPU: megatron-core's own stack of layers with local modules in Transformer Engine's place.

Converting weights runs no kernel, so the stand-ins for mamba_ssm and causal_conv1d need to do nothing. The gated norm alone is
a real module, because it has a weight. The keys of checkpoints, and the extra states that are asked for, are those of
Transformer Engine.
"""

# Megatron-Bridge is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

STAND_INS = ("mamba_ssm", "causal_conv1d")


class GatedNorm(nn.Module):
    """What mamba_ssm's RMSNorm holds."""

    def __init__(self, size: int, eps: float, device: Any = None, dtype: Any = None, **unused: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))


def prepare() -> None:
    """Give mamba_ssm's stand-in its norm. Call it while the stand-ins can be imported, before Bridge is."""
    import importlib

    norms = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
    norms.RMSNorm = GatedNorm  # type: ignore[attr-defined] - a module that is imported by name


# as in the config.json of NVIDIA's repositories, which hold the code that transformers 4 lacks
AUTO_MAP = {"AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM"}


def register() -> None:
    """Let transformers 4 read the configs without that code."""
    from transformers import AutoConfig, PretrainedConfig

    AutoConfig.register("nemotron_h", type("NemotronHConfig", (PretrainedConfig,), {"model_type": "nemotron_h"}))


def use_own_layers(with_extra_state: type) -> None:
    """Let Bridge's provider of hybrids build local modules."""
    import megatron.core.ssm.mamba_block as block
    import megatron.core.ssm.mamba_mixer as mixer
    from megatron.bridge.models.mamba.mamba_provider import MambaModelProvider
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    provide, finalize = MambaModelProvider.provide, MambaModelProvider.finalize
    mixer.get_cuda_rng_tracker = lambda: SimpleNamespace(fork=nullcontext)
    block.TENorm = lambda *args, **kwargs: _as(with_extra_state, WrappedTorchNorm(*args, **kwargs))

    def provide_without_te(self: Any, *args: Any, **kwargs: Any) -> Any:
        named, self.mamba_stack_spec = self.mamba_stack_spec, lambda: _stack(self)
        model = provide(self, *args, **kwargs)
        self.mamba_stack_spec = named
        for layer in model.decoder.layers:
            if hasattr(layer, "mlp") and hasattr(layer.mlp, "router"):
                _as(with_extra_state, layer.pre_mlp_layernorm)
        return model

    def finalize_without_te(self: Any) -> None:
        self.apply_rope_fusion = self.persist_layer_norm = self.moe_grouped_gemm = self.moe_permute_fusion = False
        self.gradient_accumulation_fusion = self.moe_shared_expert_overlap = False
        finalize(self)

    MambaModelProvider.provide, MambaModelProvider.finalize = provide_without_te, finalize_without_te


def _as(mixed_in: type, module: nn.Module) -> nn.Module:
    module.__class__ = type("ExtraNorm", (mixed_in, type(module)), {})
    return module


def _stack(config: Any) -> Any:
    """The stack of megatron-core's mamba_stack_spec, of local modules, with the names of Transformer Engine in checkpoints."""
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import ModuleSpec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_layer import (
        MoETransformerLayer,
        TransformerLayer,
        TransformerLayerSubmodules,
    )

    parts: Any = get_gpt_layer_local_spec(normalization="RMSNorm").submodules
    add: Any = get_bias_dropout_add
    linears = MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear)
    mamba = MambaLayerSubmodules(
        norm=WrappedTorchNorm,
        mixer=ModuleSpec(MambaMixer, submodules=linears),
        mamba_bda=add,
        sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"},
    )
    attention = TransformerLayerSubmodules(
        input_layernorm=WrappedTorchNorm,
        self_attention=parts.self_attention,
        self_attn_bda=add,
        sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
    )
    dense = TransformerLayerSubmodules(
        pre_mlp_layernorm=WrappedTorchNorm,
        mlp=parts.mlp,
        mlp_bda=add,
        sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
    )
    mixture: Any = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts or 1, moe_grouped_gemm=False)
    experts = TransformerLayerSubmodules(pre_mlp_layernorm=WrappedTorchNorm, mlp=mixture, mlp_bda=add)
    return ModuleSpec(
        MambaStack,
        submodules=MambaStackSubmodules(
            mamba_layer=ModuleSpec(MambaLayer, submodules=mamba),
            attention_layer=ModuleSpec(TransformerLayer, submodules=attention),
            mlp_layer=ModuleSpec(MLPLayer, submodules=dense),
            moe_layer=ModuleSpec(MoETransformerLayer, submodules=experts),
        ),
    )

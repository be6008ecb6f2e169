"""Layers of megatron-core's own wherever Megatron-Bridge takes Transformer Engine's, and their names in its weight tables."""

# Megatron-Bridge is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import bridge_fused
import bridge_hybrid


class _ExtraState:
    """What a module of Transformer Engine has besides its weights."""

    def get_extra_state(self) -> Any:
        import torch

        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        pass


def use() -> None:
    """Have Bridge's models built of them, and its weights found in them."""
    from megatron.bridge.models import gpt_provider, mla_provider
    from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

    provide = gpt_provider.GPTModelProvider.provide

    def provide_without_te(self: Any, *args: Any, **kwargs: Any) -> Any:
        if spec := bridge_fused.spec_of(self):
            stated = self.transformer_layer_spec, self.layernorm_zero_centered_gamma
            self.transformer_layer_spec, self.layernorm_zero_centered_gamma = spec, False
            model = provide(self, *args, **kwargs)
            self.transformer_layer_spec, self.layernorm_zero_centered_gamma = stated
            return model
        zero_centered, self.layernorm_zero_centered_gamma = self.layernorm_zero_centered_gamma, False
        is_gemma = type(self).__name__ in ("Gemma2ModelProvider", "Gemma3ModelProvider")
        self.transformer_layer_spec = _with_norms_behind if is_gemma else gpt_provider.local_layer_spec
        model = provide(self, *args, **kwargs)
        self.layernorm_zero_centered_gamma = zero_centered  # torch's norms do not know it; conversion does not use it
        own = [f"{name}_layernorm" for name in ("final", "q", "k", "post", *(("pre_mlp",) if self.num_moe_experts else ()))]
        for name, module in model.named_modules():
            if name.endswith(tuple(own)) and hasattr(module, "weight"):
                module.__class__ = type("ExtraNorm", (_ExtraState, type(module)), {})
        for layer in model.decoder.layers:
            if self.num_moe_experts:
                layer.submodules_config.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
        return model

    gpt_provider.GPTModelProvider.provide = provide_without_te
    for provider in (gpt_provider.GPTModelProvider, mla_provider.MLAModelProvider):
        provider.finalize = _without_fusions(provider.finalize)
    bridge_hybrid.use_own_layers(_ExtraState)
    bridge_fused.use_local_modules(_ExtraState)
    for bridge in _subclasses(MegatronModelBridge):
        if "mapping_registry" in vars(bridge):
            bridge.mapping_registry = _with_own_names(bridge.mapping_registry)


def _without_fusions(finalize: Any) -> Any:
    def finalized(self: Any) -> None:
        self.apply_rope_fusion = self.persist_layer_norm = self.moe_grouped_gemm = self.moe_permute_fusion = False
        self.gradient_accumulation_fusion = self.moe_shared_expert_overlap = False
        finalize(self)

    return finalized


def _with_norms_behind(config: Any) -> Any:
    """A layer of megatron-core's own parts, with the norms that Bridge's Gemma has in its row-parallel layers."""
    from megatron.bridge.models import gpt_provider
    from megatron.core.tensor_parallel import RowParallelLinear
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class TERowParallelLinearLayerNorm(RowParallelLinear):  # the name by which Bridge's tables know it
        def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
            super().__init__(input_size, output_size, config=config, **kwargs)
            self.post_layernorm = WrappedTorchNorm(config, output_size)

    spec = gpt_provider.local_layer_spec(config)
    attention = spec.submodules.self_attention.submodules
    attention.linear_proj = TERowParallelLinearLayerNorm
    if type(config).__name__ == "Gemma3ModelProvider":  # has them whatever its qk_layernorm says
        attention.q_layernorm = attention.k_layernorm = WrappedTorchNorm
    spec.submodules.mlp.submodules.linear_fc2 = TERowParallelLinearLayerNorm
    return spec


def _subclasses(top: type) -> list[Any]:
    return [found for child in top.__subclasses__() for found in (child, *_subclasses(child))]


def _with_own_names(registry: Any) -> Any:
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.param_mapping import AutoMapping

    def extended(self: Any) -> Any:
        mappings = list(registry(self).mappings)
        known = {mapping.megatron_param for mapping in mappings}
        for mapping in list(mappings):
            name = mapping.megatron_param
            for fused, own in (
                ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
                ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
            ):
                if fused in name and name.replace(fused, own) not in known:
                    mappings.append(AutoMapping(megatron_param=name.replace(fused, own), hf_param=mapping.hf_param))
        return MegatronMappingRegistry(*mappings, *bridge_fused.names_of_experts(mappings))

    return extended

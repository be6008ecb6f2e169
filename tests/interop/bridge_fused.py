"""Layers of mixtures, latent attention and gated delta nets in Megatron-Bridge on a CPU.

Their specs are those that megatron-core has for Transformer Engine, of local modules: a linear layer with the norm before it is
one module there, so the names of parameters, and by them Bridge's weight tables, are the real ones. Experts alone are not: a
grouped product is Transformer Engine's, so they are modules of their own, whose names are added to the tables.
"""

# Megatron-Bridge is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def use_local_modules(with_extra_state: type) -> None:
    """Let the specs that ask for Transformer Engine be of local modules."""
    from megatron.bridge.models.gpt_oss import gpt_oss_provider
    from megatron.core.models.gpt import experimental_attention_variant_module_specs as variants
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.ssm import gated_delta_net
    from megatron.core.transformer import multi_latent_attention

    gpt_oss_provider.is_te_min_version = lambda version: False
    backend = _backend(with_extra_state)
    specs.TESpecProvider = backend  # type: ignore[misc,assignment] - a class of the same methods
    specs.TENorm = backend().layer_norm()  # type: ignore[misc,assignment] - called as one
    variants._get_backend_spec_provider = lambda config: backend()
    multi_latent_attention.HAVE_TE, gated_delta_net.HAVE_FLA = False, True
    gated_delta_net.get_cuda_rng_tracker = lambda: SimpleNamespace(fork=nullcontext)  # type: ignore[assignment,return-value] - enough to make weights


def spec_of(provider: Any) -> Any:
    """The spec of a provider whose layers differ; None where they are alike."""
    spec = provider.transformer_layer_spec
    name = getattr(getattr(spec, "func", spec), "__name__", "")
    if name == "get_gpt_decoder_block_spec":
        return functools.partial(spec.func, use_transformer_engine=True)
    return spec if name == "get_transformer_block_with_experimental_attention_variant_spec" else None


def names_of_experts(mappings: list[Any]) -> list[Any]:
    """What is to be added to a weight table that names grouped experts alone."""
    known, added = {mapping.megatron_param for mapping in mappings}, []
    for mapping in mappings:
        before, grouped, after = mapping.megatron_param.partition(".mlp.experts.linear_fc")
        name = f"{before}.mlp.experts.local_experts.*.linear_fc{after.removesuffix('*')}"
        if grouped and name not in known:
            hf = mapping.hf_param
            added.append(type(mapping)(name, **hf) if isinstance(hf, dict) else type(mapping)(name, hf))
    return added


def _backend(with_extra_state: type) -> type:
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class TELayerNormColumnParallelLinear(ColumnParallelLinear):  # the name by which Bridge's tables know it
        def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:
            super().__init__(input_size, output_size, config=config, **kwargs)
            self.layer_norm_weight = nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))

    class Norm:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            module: Any = WrappedTorchNorm(*args, **kwargs)
            module.__class__ = type("TENorm", (with_extra_state, type(module)), {})
            return module

    class Backend(LocalSpecProvider):
        def linear(self) -> type:
            return ColumnParallelLinear

        def fuse_layernorm_and_linear(self) -> bool:
            return True

        def column_parallel_layer_norm_linear(self) -> type:
            return TELayerNormColumnParallelLinear

        def core_attention(self) -> type:
            return IdentityOp  # no kernel runs, and it has no weights

        def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
            return Norm

        def grouped_mlp_modules(self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool) -> Any:
            of_one = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=self.row_parallel_linear())
            return SequentialMLP, of_one

    return Backend

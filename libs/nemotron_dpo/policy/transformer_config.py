"""Make megatron-core's TransformerConfig for a policy from its architecture, its parallel layout, and what a CPU needs."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.recompute import Recompute


def transformer_config(
    architecture: Architecture, dtype: torch.dtype, *, recompute: Recompute | None = None
) -> TransformerConfig:
    """The config of this rank's part of the policy in `dtype`; the process groups must exist.

    Raises UserError if heads, groups, layers or vocabulary do not divide over the ranks, or if layers differ in a setting that
    megatron-core has only once.
    """
    layout = parallel.layout()
    _check_divisible(architecture, layout)
    _check_recompute(recompute, architecture, layout)
    fields: dict[str, Any] = {**_whole(architecture), **_sublayers(architecture), **_precision(dtype), **_parallel(layout)}
    fields |= {**_recompute(recompute), **_CPU_TOO}
    return TransformerConfig(**fields)


# what attention and dense parts of a layer take from themselves (policy.attention, policy.layers)
OWN = frozenset(("num_attention_heads", "num_query_groups", "kv_channels", "qk_layernorm", "add_qkv_bias", "ffn_hidden_size"))


def _whole(architecture: Architecture) -> dict[str, Any]:
    return {
        "num_layers": len(architecture.layers),
        "hidden_size": architecture.hidden_size,
        "layernorm_epsilon": architecture.norm_epsilon,
        "normalization": architecture.normalization,
        "layernorm_zero_centered_gamma": architecture.zero_centered_norm,
        "hetereogenous_dist_checkpoint": not architecture.is_uniform,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _sublayers(architecture: Architecture) -> dict[str, Any]:
    """The fields that the kinds of layers set. megatron-core has one config for all layers, so their values must agree.

    Where layers take values of their own, these are the first layer's.
    """
    fields: dict[str, Any] = {}
    for sublayer in dict.fromkeys(architecture.sublayers()):
        for name, value in sublayer.config().items():
            if fields.setdefault(name, value) != value and name not in OWN:
                raise UserError(f"layers that differ in {name} are not supported", remedy="layers with one value are")
    # megatron-core requires these numbers, also where no layer has attention or a feed-forward part
    fields.setdefault("ffn_hidden_size", fields.get("moe_ffn_hidden_size", architecture.hidden_size))
    fields.setdefault("num_attention_heads", parallel.layout().tensor)
    return fields


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    return {"bf16": dtype is torch.bfloat16, "params_dtype": dtype, "pipeline_dtype": dtype}


def _parallel(layout: Layout) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.splits_sequence,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "calculate_per_token_loss": True,  # gradients are summed over ranks and divided by the global number of pairs
    }
    if layout.pipeline > 1:  # rows differ in length, for which megatron-core requires this dispatcher, with experts or not
        fields |= {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall", "batch_p2p_sync": False}
        fields |= {
            "num_layers_in_first_pipeline_stage": layout.first_stage_layers,
            "num_layers_in_last_pipeline_stage": layout.last_stage_layers,
        }
    return fields


def _recompute(recompute: Recompute | None) -> dict[str, Any]:
    if recompute is None:
        return {}
    if recompute.granularity == "selective":
        if "layernorm" in recompute.modules and importlib.util.find_spec("transformer_engine") is None:
            remedy = "leave it out of policy.megatron_cfg.recompute_modules"
            raise UserError("megatron-core recomputes layernorm only with Transformer Engine", remedy=remedy)
        # without core_attn: PairAttention keeps no scores anyway, and megatron-core would keep more to recompute it
        modules = [module for module in recompute.modules if module != "core_attn"]
        return {"recompute_granularity": "selective", "recompute_modules": modules} if modules else {}
    method, num_layers = recompute.method, recompute.num_layers
    return {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": num_layers}


_CPU_TOO = {
    "use_cpu_initialization": True,
    "perform_initialization": False,  # every weight is loaded
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "bias_activation_fusion": False,  # these two fusions are torch.compile, whose kernels differ between
    "bias_dropout_fusion": False,  # training and inference: policy and reference would disagree at step 1
}


def _check_divisible(architecture: Architecture, layout: Layout) -> None:
    """Raise UserError if the policy does not divide evenly over the ranks."""
    if layout.expert > 1 and not any(layer.num_experts for layer in architecture.layers):
        raise UserError(f"the policy has no experts to divide over {layout.expert} ranks", remedy="it is no mixture of experts")
    if device().type == "cpu" and layout.expert > 1 and (layout.expert_tensor or layout.tensor) > 1:
        what = "on CPUs, ranks that divide the experts of a mixture cannot divide each expert too: gloo gathers equal parts"
        raise UserError(what, remedy="set policy.megatron_cfg.expert_tensor_parallel_size=1")
    kinds = dict.fromkeys(architecture.sublayers())
    sizes = [("vocabulary entries", architecture.vocab_size, layout.tensor)]
    sizes += [size for sublayer in kinds for size in sublayer.undivided(layout)]
    for what, size, ranks in sizes:
        if size % ranks:
            raise UserError(f"the policy's {size} {what} do not divide over {ranks} ranks", remedy="change the parallel size")
    layout.stages(len(architecture.layers))


def _check_recompute(recompute: Recompute | None, architecture: Architecture, layout: Layout) -> None:
    """Raise UserError where units of layers that are computed again do not make up a stage: megatron-core runs past its end."""
    if recompute is None or recompute.granularity != "full" or recompute.method != "uniform":
        return
    for stage in layout.stages(len(architecture.layers)):
        layers, unit = stage.stop - stage.start, recompute.num_layers
        if layers % unit:
            what = f"units of {unit} layers that are computed again do not make up the {layers} layers of a pipeline stage"
            raise UserError(what, remedy="change policy.megatron_cfg.recompute_num_layers, or recompute_method to block")

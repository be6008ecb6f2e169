"""megatron-core's TransformerConfig for a policy: what the architecture says, how it is cut, what a CPU needs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.transformer import TransformerConfig
from torch.nn import functional as F

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """relu(x) squared; megatron-core's is torch.compile'd, whose kernels differ between training and inference."""
    return F.relu(x).square()


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS = {"silu": F.silu, "relu2": squared_relu, "gelu_tanh": gelu_tanh}


@dataclass(frozen=True)
class Recompute:
    """Which activations are computed again in the backward pass instead of being kept, in megatron-core's words.

    "full" keeps only what enters a unit of `num_layers` layers (uniform), or of each of the first `num_layers` layers of a
    stage (block). "selective" recomputes the named `modules` of every layer.
    """

    granularity: Literal["full", "selective"] = "full"
    method: Literal["uniform", "block"] = "uniform"
    num_layers: int = 1
    modules: tuple[str, ...] = ("core_attn",)


def transformer_config(shape: Architecture, dtype: torch.dtype, *, recompute: Recompute | None = None) -> TransformerConfig:
    """The config of this rank's part of `shape` in `dtype`; process groups must exist.

    Raises UserError where heads, groups, layers or vocabulary do not divide over the ranks.
    """
    _check_divisible(shape)
    settings: dict[str, Any] = {**_architecture(shape), **_precision(dtype), **_parallel(), **_recompute(recompute), **_CPU_TOO}
    return TransformerConfig(**settings)


def _architecture(shape: Architecture) -> dict[str, Any]:
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.kv_channels,
        "layernorm_epsilon": shape.norm_epsilon,
        "normalization": shape.normalization,
        "layernorm_zero_centered_gamma": shape.zero_centered_norm,
        "qk_layernorm": shape.qk_norm,
        "gated_linear_unit": shape.gated,
        "activation_func": _ACTIVATIONS[shape.activation],
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        **_experts(shape),
    }


def _experts(shape: Architecture) -> dict[str, Any]:
    """The router as Hugging Face's: no token dropped, no auxiliary loss, probabilities in float32."""
    if shape.experts is None:
        return {}
    if shape.experts.top_k == 1 and shape.experts.renormalize:
        raise UserError("a router that picks one expert and renormalizes is not supported", remedy="two or more experts are")
    return {
        "num_moe_experts": shape.experts.num,
        "moe_ffn_hidden_size": shape.ffn_hidden_size,
        "moe_router_topk": shape.experts.top_k,
        "moe_router_pre_softmax": not shape.experts.renormalize,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
    }


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    return {"bf16": dtype is torch.bfloat16, "params_dtype": dtype, "pipeline_dtype": dtype}


def _parallel() -> dict[str, Any]:
    layout = parallel.layout()
    settings: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.splits_sequence,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "calculate_per_token_loss": True,  # gradients are summed over ranks and divided by the global number of pairs
    }
    if layout.pipeline > 1:  # rows differ in length; megatron-core wants this dispatcher with variable lengths, dense or not
        settings |= {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall", "batch_p2p_sync": False}
        settings |= {
            "num_layers_in_first_pipeline_stage": layout.first_stage_layers,
            "num_layers_in_last_pipeline_stage": layout.last_stage_layers,
        }
    return settings


def _recompute(recompute: Recompute | None) -> dict[str, Any]:
    if recompute is None:
        return {}
    if recompute.granularity == "selective":
        if "layernorm" in recompute.modules and importlib.util.find_spec("transformer_engine") is None:
            remedy = "leave it out of policy.megatron_cfg.recompute_modules"
            raise UserError("megatron-core recomputes layernorm only with Transformer Engine", remedy=remedy)
        # PairAttention keeps no scores as it is; what megatron-core would keep for it instead is more
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


def _check_divisible(shape: Architecture) -> None:
    layout = parallel.layout()
    sizes = [
        ("attention heads", shape.num_attention_heads, layout.tensor),
        ("vocabulary entries", shape.vocab_size, layout.tensor),
        ("feed-forward channels", shape.ffn_hidden_size, _feed_forward_ranks(shape)),
        ("experts", shape.experts.num if shape.experts else 0, layout.expert),
    ]
    if shape.num_query_groups > layout.tensor:
        sizes.append(("key/value heads", shape.num_query_groups, layout.tensor))
    elif layout.tensor % shape.num_query_groups:
        message = f"{layout.tensor} tensor-parallel ranks do not share the policy's {shape.num_query_groups} key/value heads"
        raise UserError(f"{message} evenly", remedy="change the parallel size")
    for what, size, ranks in sizes:
        if size % ranks:
            raise UserError(f"the policy's {size} {what} do not divide over {ranks} ranks", remedy="change the parallel size")
    if layout.expert > 1 and shape.experts is None:
        raise UserError(f"the policy has no experts to divide over {layout.expert} ranks", remedy="it is no mixture of experts")
    if shape.experts and layout.tensor > 1 and not layout.sequence:
        raise UserError(
            "a mixture of experts under tensor parallelism trains only with sequence parallelism",
            remedy="set policy.megatron_cfg.sequence_parallel=true",
        )
    _check_stages(shape.num_layers)


def _feed_forward_ranks(shape: Architecture) -> int:
    layout = parallel.layout()
    return layout.tensor if shape.experts is None else layout.expert_tensor or layout.tensor


def _check_stages(num_layers: int) -> None:
    """Raise UserError unless the stages that name no number of layers share the rest evenly."""
    layout = parallel.layout()
    if layout.pipeline == 1:
        return
    named = [n for n in (layout.first_stage_layers, layout.last_stage_layers) if n is not None]
    stages, layers = layout.pipeline - len(named), num_layers - sum(named)
    even = layers > 0 and layers % stages == 0 if stages else layers == 0
    each = [*named, layers // stages] if stages and even else named
    if even and all(n > 0 for n in each):
        return
    besides = f" besides the {sum(named)} of the first or last stage" if named else ""
    raise UserError(
        f"the policy's {layers} layers{besides} do not divide over {stages} ranks", remedy="change the parallel size"
    )

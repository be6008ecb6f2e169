"""gpt-oss: sinks and biases in attention, a window in some layers, a mixture of clamped experts whose router has a bias.

HF names are on the right; the first `{}` is the layer number, `[{}]` the expert's place in a tensor that stacks them all. There
gate and up projection take turns, and matrices are [inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, NORMS, QKV_BIAS
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.hf_weights import Rule, copy
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import UniformDecoder

if TYPE_CHECKING:
    from torch import Tensor

_LAYER, _HF = "decoder.layers.{}.", "model.layers.{}."
_EXPERT, _STACK = f"{_LAYER}mlp.experts.local_experts.{{}}.", f"{_HF}mlp.experts."
_SLIDING, _FULL = "sliding_attention", "full_attention"
_AUX_LOSS_COEF = 0.001  # what transformers takes where config.json says none


def _gate_and_up(megatron: str, hf: str) -> Rule:
    """Gate and up channels that take turns along the last axis, as gate over up."""

    def merge(layer: object, parts: Sequence[Tensor]) -> Tensor:
        import torch

        turned = parts[0].t() if parts[0].dim() == 2 else parts[0]
        return torch.cat((turned[::2], turned[1::2]))

    def split(layer: object, full: Tensor) -> Sequence[Tensor]:
        import torch

        turns = torch.stack(full.chunk(2), 1).flatten(0, 1)
        return [turns.t() if full.dim() == 2 else turns]

    return Rule(megatron, (hf,), merge, split, halves=True)


def _transposed(megatron: str, hf: str) -> Rule:
    return Rule(megatron, (hf,), lambda layer, parts: parts[0].t(), lambda layer, full: [full.t()])


_WEIGHTS = (
    *EMBEDDING,
    *NORMS,
    *ATTENTION,
    *QKV_BIAS,
    copy(f"{_LAYER}self_attention.linear_proj.bias", f"{_HF}self_attn.o_proj.bias"),
    copy(f"{_LAYER}self_attention.core_attention.softmax_offset", f"{_HF}self_attn.sinks"),
    copy(f"{_LAYER}mlp.router.weight", f"{_HF}mlp.router.weight"),
    copy(f"{_LAYER}mlp.router.bias", f"{_HF}mlp.router.bias"),
    _gate_and_up(f"{_EXPERT}linear_fc1.weight", f"{_STACK}gate_up_proj[{{}}]"),
    _gate_and_up(f"{_EXPERT}linear_fc1.bias", f"{_STACK}gate_up_proj_bias[{{}}]"),
    _transposed(f"{_EXPERT}linear_fc2.weight", f"{_STACK}down_proj[{{}}]"),
    copy(f"{_EXPERT}linear_fc2.bias", f"{_STACK}down_proj_bias[{{}}]"),
)
_YARN: Mapping[str, Any] = {  # the positions that transformers takes where config.json says none
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    limit, coeff = config.get("swiglu_limit"), config.get("router_aux_loss_coef", _AUX_LOSS_COEF)
    own = None if coeff is None else float(coeff)
    return {
        **_windows(config),
        "clamp": 7.0 if limit is None else float(limit),
        "experts": Router(
            config["num_local_experts"], config["num_experts_per_tok"], aux_loss_coeff=own, bias=True, balances=False
        ),
    }


def _windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers have the window: those that layer_types names so, else every other one from the first on."""
    num, window = config["num_hidden_layers"], config.get("sliding_window", 128)
    kinds = config.get("layer_types") or [_FULL if layer % 2 else _SLIDING for layer in range(num)]
    if unknown := set(kinds) - {_SLIDING, _FULL}:
        raise UserError(f"layers of {', '.join(sorted(unknown))} are not supported", remedy=f"{_SLIDING} and {_FULL} are")
    if len(kinds) != num:
        raise UserError(f"layer_types names {len(kinds)} layers, and num_hidden_layers {num}", remedy="leave the right ones")
    windowed = tuple(kind == _SLIDING for kind in kinds)
    if not any(windowed):
        return {"window": None}
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"sliding_window is {window!r}")
    return {"window": window, "windowed": None if all(windowed) else windowed}


def _write(decoder: UniformDecoder) -> dict[str, Any]:
    assert decoder.experts is not None
    coeff, windowed = decoder.experts.aux_loss_coeff, decoder.windowed or (decoder.window is not None,) * decoder.num_layers
    return {
        "num_local_experts": decoder.experts.num,
        "num_experts_per_tok": decoder.experts.top_k,
        "output_router_logits": False,
        **({} if coeff is None else {"router_aux_loss_coef": coeff}),
        "swiglu_limit": decoder.clamp,
        "layer_types": [_SLIDING if has_window else _FULL for has_window in windowed],
        **({} if decoder.window is None else {"sliding_window": decoder.window}),
    }


GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    _WEIGHTS,
    traits={"qkv_bias": True, "bias": True, "sinks": True, "activation": "quick_gelu", "linear_offset": 1.0},
    defaults={"head_dim": 64, "rope_theta": 150000.0, "num_key_value_heads": 8, "rope_parameters": _YARN},
    only={"attention_bias": (True,), "swiglu_alpha": (1.702,)},
    read=_read,
    write=_write,
    some_windows=True,
    mxfp4=True,
)

FAMILIES = (GPT_OSS,)

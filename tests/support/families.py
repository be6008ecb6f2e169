"""Small random models of every supported architecture, made and run by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 96

_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
}
# model_type -> what its small model has besides SIZES
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16, "sliding_window": 64},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"head_dim": 16},
    "nemotron": {},
    "phi3": {"pad_token_id": 0, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}},
    "gemma": {"head_dim": 16, "hidden_size": 40},
    "gemma2": {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "olmo2": {},
    "olmo3": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    },
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 12.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 0.7,
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 9,
        "swiglu_limit": 0.8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "glm4_moe": {
        "head_dim": 16,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "n_shared_experts": 2,
        "routed_scaling_factor": 2.5,
        "num_mtp_layers": 0,
    },
    "deepseek_v3": {
        **_LATENT,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "num_mtp_layers": 0,
    },
    "deepseek_v2": {
        **_LATENT,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": None,
        "n_routed_experts": 6,
        "first_k_dense_replace": 1,
    },
    "glm4_moe_lite": {**_LATENT, "n_routed_experts": 6, "v_head_dim": 28, "rms_norm_eps": 1e-4},
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": [2, 5],
    "pad_token_id": 3,
}


def write_model(
    folder: Path, model_type: str, *, tied: bool = False, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random model as transformers saves it; norms and biases are random too, or a swap of them would go unseen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(len(model_type))
    settings = {**SIZES, "tie_word_embeddings": tied, **FAMILIES[model_type], **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # in float32 whatever the weights are, as publishers have it
            buffer.data = torch.empty(buffer.shape).normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def write_config(folder: Path, model_type: str) -> Path:
    """The config.json of such a model alone."""
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **{**SIZES, **FAMILIES[model_type]}).save_pretrained(folder)
    return folder / "config.json"


def load(folder: Path) -> Any:
    """The model in transformers, float32, eager attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """float32 logits [S, V] of transformers for the token ids [S]."""
    with torch.inference_mode():
        return load(folder)(ids[None]).logits[0]

"""Dense decoder-only families: Llama's table, and what each other family changes in it.

HF names are on the right; `{}` is the layer number. megatron-core's linear_fc1 stacks gate_proj over up_proj.
"""

from __future__ import annotations

import math

from nemotron_dpo.checkpoint.families import qwen_windows
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.hf_weights import Rule, copy, fused_qkv, qkv, stack

_LAYER, _HF = "decoder.layers.{}.", "model.layers.{}."

EMBEDDING = (copy("embedding.word_embeddings.weight", "model.embed_tokens.weight"),)
NORMS = (
    copy(f"{_LAYER}input_layernorm.weight", f"{_HF}input_layernorm.weight"),
    copy(f"{_LAYER}pre_mlp_layernorm.weight", f"{_HF}post_attention_layernorm.weight"),
    copy("decoder.final_layernorm.weight", "model.norm.weight"),
)
NORM_BIASES = (
    copy(f"{_LAYER}input_layernorm.bias", f"{_HF}input_layernorm.bias"),
    copy(f"{_LAYER}pre_mlp_layernorm.bias", f"{_HF}post_attention_layernorm.bias"),
    copy("decoder.final_layernorm.bias", "model.norm.bias"),
)
ATTENTION = (
    qkv(f"{_LAYER}self_attention.linear_qkv.weight", f"{_HF}self_attn.q|k|v_proj.weight"),
    copy(f"{_LAYER}self_attention.linear_proj.weight", f"{_HF}self_attn.o_proj.weight"),
)
QKV_BIAS = (qkv(f"{_LAYER}self_attention.linear_qkv.bias", f"{_HF}self_attn.q|k|v_proj.bias"),)
QK_NORM = (
    copy(f"{_LAYER}self_attention.q_layernorm.weight", f"{_HF}self_attn.q_norm.weight"),
    copy(f"{_LAYER}self_attention.k_layernorm.weight", f"{_HF}self_attn.k_norm.weight"),
)
DOWN = (copy(f"{_LAYER}mlp.linear_fc2.weight", f"{_HF}mlp.down_proj.weight"),)
GATED_MLP = (stack(f"{_LAYER}mlp.linear_fc1.weight", f"{_HF}mlp.gate_proj.weight", f"{_HF}mlp.up_proj.weight"), *DOWN)

_LLAMA: tuple[Rule, ...] = (*EMBEDDING, *NORMS, *ATTENTION, *GATED_MLP)

LLAMA = Family("llama", "LlamaForCausalLM", _LLAMA)
MISTRAL = Family("mistral", "MistralForCausalLM", _LLAMA, keys={"window": "sliding_window"}, defaults={"sliding_window": 4096})
# whose texts may be as long as keeps its queries as they are (policy.sublayers.rotary.Yarn)
MINISTRAL3 = Family(
    "ministral3",
    "Ministral3ForCausalLM",
    _LLAMA,
    keys={"window": "sliding_window"},
    defaults={
        "head_dim": 128,
        "sliding_window": None,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    (*_LLAMA, *QKV_BIAS),
    traits={"qkv_bias": True},
    only=qwen_windows.ONLY,
    read=qwen_windows.read,
    write=qwen_windows.write,
    some_windows=True,
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    (*_LLAMA, *QK_NORM),
    traits={"qk_norm": True},
    defaults={"head_dim": 128},
    only=qwen_windows.ONLY,
    read=qwen_windows.read,
    write=qwen_windows.write,
    some_windows=True,
)
# Nemotron and Minitron: LayerNorm whose stored weight is one less, squared ReLU without a gate, half of each head rotated
NEMOTRON = Family(
    "nemotron",
    "NemotronForCausalLM",
    (
        *EMBEDDING,
        *NORMS,
        *NORM_BIASES,
        *ATTENTION,
        copy(f"{_LAYER}mlp.linear_fc1.weight", f"{_HF}mlp.up_proj.weight"),
        *DOWN,
    ),
    traits={"normalization": "LayerNorm", "zero_centered_norm": True, "activation": "relu2", "gated": False},
    keys={"norm_epsilon": "norm_eps"},
    defaults={"partial_rotary_factor": 0.5},
    only={"hidden_act": ("relu2",)},
)
# Phi-3 and Phi-4: the HF tensors are fused projections
PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    (
        *EMBEDDING,
        *NORMS,
        fused_qkv(f"{_LAYER}self_attention.linear_qkv.weight", f"{_HF}self_attn.qkv_proj.weight"),
        ATTENTION[1],
        copy(f"{_LAYER}mlp.linear_fc1.weight", f"{_HF}mlp.gate_up_proj.weight", halves=True),
        *DOWN,
    ),
    keys={"window": "sliding_window"},
    defaults={"partial_rotary_factor": 1.0, "sliding_window": None, "original_max_position_embeddings": 4096},
)
# Gemma 1: RMSNorm whose stored weight is one less, scaled embeddings; older configs say gelu and mean its tanh form
GEMMA = Family(
    "gemma",
    "GemmaForCausalLM",
    _LLAMA,
    traits={"zero_centered_norm": True, "activation": "gelu_tanh"},
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    only={"hidden_act": ("gelu_pytorch_tanh", "gelu"), "hidden_activation": ("gelu_pytorch_tanh",)},
    read=lambda config: {"embedding_scale": math.sqrt(config["hidden_size"])},
)

FAMILIES = (LLAMA, MISTRAL, MINISTRAL3, QWEN2, QWEN3, NEMOTRON, PHI3, GEMMA)

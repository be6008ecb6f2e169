"""What publishers call the models of each family, and the families that people align elsewhere and cannot here, with why.

The table in checkpoint/README.md is made of these two (`checkpoint.family_table`), and so is what an unsupported model is told.
"""

from __future__ import annotations

# model_type -> what its publishers call its models
MODELS: dict[str, str] = {
    "llama": "Llama 2 to 3.3, SmolLM2, DeepSeek-R1-Distill-Llama, Llama-Nemotron Nano",
    "mistral": "Mistral 7B, Mistral Nemo, Mistral Small (text)",
    "ministral3": "Ministral 3 (text)",
    "qwen2": "Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    "qwen3": "Qwen3",
    "nemotron": "Nemotron-4, Minitron",
    "phi3": "Phi-3, Phi-3.5-mini, Phi-4",
    "gemma": "Gemma 1, CodeGemma",
    "mixtral": "Mixtral",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 1B and 270M",
    "gpt_oss": "gpt-oss",
    "olmo2": "OLMo 2",
    "granite": "Granite 3",
    "olmo3": "OLMo 3",
    "qwen3_next": "Qwen3-Next",
    "qwen3_5_text": "Qwen3.5 (text tower)",
    "qwen3_5_moe_text": "Qwen3.5 with experts (text tower)",
    "qwen3_moe": "Qwen3-MoE",
    "nemotron_h": "Nemotron-H, Nemotron Nano v2, Nemotron-3-Nano",
    "nemotron-nas": "Llama-Nemotron Super and Ultra (DeciLM)",
    "glm4_moe": "GLM-4.5, GLM-4.5-Air, GLM-4.6",
    "deepseek_v2": "DeepSeek-V2-Lite",
    "deepseek_v3": "DeepSeek-V3 and R1, Moonlight",
    "kimi_k2": "Kimi K2, which is written as deepseek_v3",
    "glm4_moe_lite": "GLM-4.7-Flash",
}

# the same of multimodal models, by the model_type of the whole
AROUND: dict[str, str] = {
    "gemma3": "Gemma 3 4B to 27B",
    "mistral3": "Ministral 3, Mistral Small 3.1 and 3.2",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 with experts",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL without experts",
    "llava": "LLaVA 1.5 and its like",
    "llava_next": "LLaVA-NeXT",
    "internvl": "InternVL in transformers' form",
}

# why -> the model_types that it is true of
_REASONS: dict[str, str] = {
    "of hybrids Nemotron-H alone is (nemotron_h: Nemotron-H, Nemotron Nano v2, Nemotron-3-Nano)": """mamba mamba2 falcon_mamba
    jamba bamba zamba zamba2 falcon_h1 granitemoehybrid lfm2 lfm2_moe recurrent_gemma olmo_hybrid kimi_linear kimi_k3
    bailing_hybrid minimax""",
    "an indexer of its own picks the keys that each query sees": "deepseek_v32 glm_moe_dsa",
    "its attention is over compressed keys": "deepseek_v4",
    "queries of some layers see sinks, windows and heads that those of other layers do not": "mimo_v2_flash",
    "some layers have no positions": "smollm3 cohere2 exaone4 exaone_moe afmoe",
    "norms are behind what they norm": "glm4",
    "its shared expert is weighed by a gate": "qwen2_moe",
    "one norm is over the queries of all heads": "olmoe minimax_m2 flex_olmo",
    "queries and keys are normed after they turn": "hunyuan_v1_dense hunyuan_v1_moe",
    "channels of attention without a latent vector turn with their neighbours": "glm ernie4_5 ernie4_5_moe",
    "attention and feed-forward part read the stream side by side": "cohere phi gpt_neox falcon",
    "its activation is not built": "apertus",
    "its norms have no weights": "olmo",
    "its router is not built": "phimoe longcat_flash",
    "its queries, keys and values are clipped": "dbrx",
    "all of its linear layers have biases": "starcoder2",
    "its positions are not rotary": "gpt2 opt bloom mpt gpt_neo",
    "its parts are known, and nobody has put them together yet": """seed_oss arcee dots1 solar_open youtu minicpm3 ministral
    granitemoe hy_v3 internlm3 stablelm helium""",
    "transformers has no code of it, and code that comes with a model is never run": """mimo internlm internlm2 baichuan chatglm
    minicpm telechat telechat2 yuan xverse orion skywork bailing_moe bailing_moe_v2 step3p5 exaone sarvam_moe sarvam_mla qwen
    deepseek grok""",
    "it sees or hears, and rows here are text": """llama4 mllama qwen2_audio qwen2_5_omni qwen3_omni_moe glm4v glm4v_moe gemma3n
    gemma4 pixtral paligemma kimi_vl kimi_k25 minicpmv phi4_multimodal ernie4_5_vl_moe minimax_m3_vl exaone4_5""",
    "it stores the matrices of its experts transposed, which is not built": "qwen3_vl_moe",
}
REASONS: dict[str, str] = {model_type: why for why, named in _REASONS.items() for model_type in named.split()}

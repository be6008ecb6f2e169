"""OLMo 2: norms of what attention and the dense part add and none before them, and queries and keys normed over all heads.

HF names are on the right; `{}` is the layer number.
"""

from __future__ import annotations

from nemotron_dpo.checkpoint.families.dense import ATTENTION, EMBEDDING, GATED_MLP, QK_NORM
from nemotron_dpo.checkpoint.families.family import Family
from nemotron_dpo.checkpoint.hf_weights import Rule, copy

_LAYER, _HF = "decoder.layers.{}.", "model.layers.{}."
NORMS_AFTER: tuple[Rule, ...] = (
    copy(f"{_LAYER}self_attn_bda.post_layernorm.weight", f"{_HF}post_attention_layernorm.weight"),
    copy(f"{_LAYER}mlp_bda.post_layernorm.weight", f"{_HF}post_feedforward_layernorm.weight"),
)
FINAL_NORM = copy("decoder.final_layernorm.weight", "model.norm.weight")

OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    (*EMBEDDING, *NORMS_AFTER, FINAL_NORM, *ATTENTION, *QK_NORM, *GATED_MLP),
    traits={"qk_norm": True, "qk_norm_over_heads": True, "norm_before": False, "norm_after": True},
)

FAMILIES = (OLMO2,)

"""Granite 3: a Llama that scales its scores, its embeddings and what it adds to the stream, and divides its logits."""

from __future__ import annotations

from nemotron_dpo.checkpoint.families.dense import LLAMA
from nemotron_dpo.checkpoint.families.family import Family

_MULTIPLIERS = {
    "attention_scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logits_divisor": "logits_scaling",
}

GRANITE = Family(
    "granite",
    "GraniteForCausalLM",
    LLAMA.weights,
    traits={"rounds_scale": False},
    keys=_MULTIPLIERS,
    defaults=dict.fromkeys(_MULTIPLIERS.values(), 1.0),
)

FAMILIES = (GRANITE,)

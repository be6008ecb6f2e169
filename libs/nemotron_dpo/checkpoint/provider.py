"""An architecture as the fields of Megatron-Bridge's model providers, and back. Symbols stay names; nothing is imported.

run_config.py stores apart what a provider has no field for: the family and the special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dpo.checkpoint import (
    provider_decilm,
    provider_gated_delta,
    provider_gemma,
    provider_hybrid,
    provider_leading_dense,
    provider_uniform,
)
from nemotron_dpo.checkpoint.families import FAMILIES
from nemotron_dpo.checkpoint.provider_limits import refuse_unsupported
from nemotron_dpo.checkpoint.provider_parts import read_activation
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.uniform import flat

# families whose layers differ in a way of their own, and what writes and reads their fields
_WITH_ITS_OWN: Mapping[str, Any] = {
    provider_decilm.FAMILY: provider_decilm,
    **dict.fromkeys(provider_gated_delta.FAMILIES, provider_gated_delta),
    **dict.fromkeys(provider_leading_dense.FAMILIES, provider_leading_dense),
}
_OF_NO_PROVIDER = frozenset(("olmo3",))  # whose layers differ, besides


def none_of_bridge(architecture: Architecture) -> dict[str, str]:
    """The class of what no provider describes: one that Bridge does not know, and does not take."""
    return {"_target_": f"nemotron_dpo.not_in_megatron_bridge.{architecture.family}"}


def to_provider(architecture: Architecture) -> dict[str, Any]:
    """The provider's fields, in the YAML form from which Megatron-Bridge makes the provider.

    Raises UserError where no provider has fields for the architecture. Fields may say less than it is: read them back.
    """
    if architecture.is_hybrid:
        return provider_hybrid.to_provider(architecture)
    if architecture.family in _OF_NO_PROVIDER:
        raise UserError(f"Megatron-Bridge has no provider for a {architecture.family}")
    none = none_of_bridge(architecture) if beside_provider(architecture) else {}
    if architecture.family in _WITH_ITS_OWN:
        return _WITH_ITS_OWN[architecture.family].to_provider(architecture) | none
    if architecture.family not in provider_gemma.FAMILIES:
        return provider_uniform.to_provider(flat(architecture)) | none
    alike = provider_uniform.to_provider(flat(provider_gemma.as_uniform(architecture)))
    return alike | provider_gemma.to_provider(architecture) | none


def beside_provider(architecture: Architecture) -> dict[str, Any]:
    """What the architecture has that no provider has a field for, as run_config.py stores it apart."""
    if architecture.family in provider_leading_dense.FAMILIES:
        return provider_leading_dense.beside_provider(architecture)
    if architecture.is_hybrid or architecture.family in _WITH_ITS_OWN:
        return {}
    if architecture.family in provider_gemma.FAMILIES:
        return provider_gemma.beside_provider(architecture)
    return provider_uniform.beside_provider(flat(architecture))


def from_provider(model: dict[str, Any], extra: dict[str, Any]) -> Architecture:
    """The architecture that provider fields describe. `extra` is what run_config.py stores apart; {} in Bridge's own files.

    Raises UserError where a field needs what is not supported, KeyError and the like where the fields are no model.
    """
    for own in (provider_hybrid, provider_gated_delta, provider_decilm):
        if own.describes(model):
            return own.from_provider(model, extra)
    if provider_leading_dense.describes(model, extra):
        return provider_leading_dense.from_provider(model, extra)
    family = _read_family(model, extra)
    if family not in provider_gemma.FAMILIES:
        free = provider_uniform.FREE_OF_GPT_OSS if family == "gpt_oss" else provider_uniform.FREE
        refuse_unsupported(model, provider_uniform.POSITIONS, free)
        return provider_uniform.from_provider(model, extra, family).architecture
    refuse_unsupported(model, free=provider_gemma.FREE)
    alike = provider_uniform.from_provider(provider_gemma.uniform_fields(model, family), extra, family).architecture
    return provider_gemma.with_layers(alike, model, extra)


def _read_family(model: dict[str, Any], extra: dict[str, Any]) -> str:
    family = extra.get("family") or infer_family(model)
    if family not in FAMILIES:
        raise UserError(f"family {family!r} is not supported", remedy=f"{', '.join(FAMILIES)} are")
    return family


def infer_family(model: dict[str, Any]) -> str:
    """Hugging Face's model_type for provider fields that do not name it, from the provider's class, else from the fields.

    Bridge has provider classes for Gemma and Mistral. Every other family is a GPTModelProvider, recognized by a trait:
    sinks (gpt_oss), LayerNorm or squared ReLU (nemotron), zero-centred RMSNorm (gemma), experts with q/k norms (qwen3_moe) or
    without (mixtral), q/k norms (qwen3), biases on q, k and v (qwen2), a window (mistral). Without any of these it is llama.
    """
    target = str(model.get("_target_", "")).lower()
    experts, qk_norm = bool(model.get("num_moe_experts")), bool(model.get("qk_layernorm"))
    if named := provider_gemma.family_of(str(model.get("_target_", ""))):
        return named
    rules = (
        ("gpt_oss", model.get("softmax_type") == "learnable"),
        ("gemma", ".gemma." in target),
        ("mistral", ".mistral." in target),
        ("nemotron", model["normalization"] == "LayerNorm" or read_activation(model) == "relu2"),
        ("gemma", bool(model.get("layernorm_zero_centered_gamma"))),
        ("qwen3_moe", experts and qk_norm),
        ("mixtral", experts),
        ("qwen3", qk_norm),
        ("qwen2", bool(model.get("add_qkv_bias"))),
        ("mistral", bool(model.get("window_size"))),
    )
    return next((family for family, holds in rules if holds), "llama")

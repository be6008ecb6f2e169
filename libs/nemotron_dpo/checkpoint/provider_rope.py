"""Scaled rotary positions as fields of Megatron-Bridge's providers, and what of them no provider has a field for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.sublayers.rotary import Dynamic, LinearScaling, Llama3Scaling, LongRope, Scaling, Yarn

NAME = "rope_scaling"  # in what run_config.py stores apart
_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (Dynamic, LinearScaling, Llama3Scaling, LongRope, Yarn)}
# field of Yarn -> the provider's
_YARN = {
    "factor": "yarn_rotary_scaling_factor",
    "original_length": "yarn_original_max_position_embeddings",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "mscale": "yarn_mscale",
    "mscale_all_dim": "yarn_mscale_all_dim",
    "truncate": "yarn_correction_range_round_to_int",
}
# Megatron-Bridge 0.3.1 gives every gpt-oss these, and leaves them out of the checkpoint
_YARN_OF_GPT_OSS = Yarn(32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False)


def to_provider(scaling: Scaling | None) -> dict[str, Any]:
    """The provider's fields, as far as it has them."""
    factor = scaling.factor if isinstance(scaling, Llama3Scaling) else 1.0
    fields = {
        "position_embedding_type": "rope",
        "rope_scaling": isinstance(scaling, Llama3Scaling),
        "rope_scaling_factor": factor,
    }
    if isinstance(scaling, LinearScaling):
        return {**fields, "seq_len_interpolation_factor": scaling.factor}
    if isinstance(scaling, Yarn):
        own = {key: getattr(scaling, field) for field, key in _YARN.items()}
        return {**fields, "position_embedding_type": "yarn", **own}
    return fields


def beside_provider(scaling: Scaling | None) -> dict[str, Any]:
    """A scaling for which providers have no fields, or not for all its numbers; nothing where they have."""
    if scaling is None:
        return {}
    is_known = (
        isinstance(scaling, LinearScaling)
        or (isinstance(scaling, Llama3Scaling) and scaling == Llama3Scaling(scaling.factor))
        or (isinstance(scaling, Yarn) and scaling.attention_factor is None and scaling.query_growth is None)
    )
    return {} if is_known else {NAME: {"kind": type(scaling).__name__, **_plain(asdict(scaling))}}


def from_provider(model: Mapping[str, Any], extra: Mapping[str, Any]) -> Scaling | None:
    """The scaling that is stored apart, else that of the fields. Raises UserError where they do not say it."""
    if NAME in extra:
        stored = dict(extra[NAME])
        kind = _KINDS[stored.pop("kind")]
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
    if model.get("position_embedding_type") == "yarn":
        return _yarn(model)
    if model.get("seq_len_interpolation_factor"):
        return LinearScaling(float(model["seq_len_interpolation_factor"]))
    return Llama3Scaling(float(model["rope_scaling_factor"])) if model.get("rope_scaling") else None


def _yarn(model: Mapping[str, Any]) -> Yarn:
    own: dict[str, Any] = {field: model[key] for field, key in _YARN.items() if model.get(key) is not None}
    if not own and model.get("softmax_type") == "learnable":
        return _YARN_OF_GPT_OSS
    for field in ("factor", "original_length"):
        if field not in own:
            remedy = "Megatron-Bridge 0.3.1 leaves such fields out: start from the model's Hugging Face folder"
            raise UserError(f"position_embedding_type is yarn, and {_YARN[field]} is missing", remedy=remedy)
    return Yarn(**own)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As YAML has it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

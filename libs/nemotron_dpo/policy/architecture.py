"""What shape of model a policy is: one frozen description between HF config.json, run_config.yaml and megatron-core.

Only Llama-shaped models (Llama, SmolLM2 and their likes) are known here; any other `model_type` is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo.errors import UserError

_DTYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class Llama3Scaling:
    """The rope scaling of Llama 3.1 and later; megatron-core fixes the other three numbers of that rule."""

    factor: float


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer: sizes in elements, `dtype` the precision its weights are stored in."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    tied_embeddings: bool
    dtype: str
    rope_scaling: Llama3Scaling | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def to_hf(self) -> dict[str, Any]:
        """config.json; rope is written in the forms of transformers 4 and 5, since each misreads the other's."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": "llama3", "factor": self.rope_scaling.factor, **_LLAMA3_FIXED}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": self.dtype,
            "eos_token_id": self.eos_token_id,
            "head_dim": self.kv_channels,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_hidden_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": False,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_query_groups,
            "rms_norm_eps": self.norm_epsilon,
            "rope_parameters": {"rope_theta": self.rotary_base, **(scaling or {"rope_type": "default"})},
            "rope_scaling": scaling,
            "rope_theta": self.rotary_base,
            "tie_word_embeddings": self.tied_embeddings,
            "torch_dtype": self.dtype,
            "vocab_size": self.vocab_size,
        }


_LLAMA3_FIXED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def from_hf(folder: Path) -> Architecture:
    """Read the architecture of an HF folder. Raises UserError where config.json is damaged or of an unknown kind."""
    path = folder / "config.json"
    try:
        config = orjson.loads(path.read_bytes())
        _refuse_unknown(config, path)
        heads = config["num_attention_heads"]
        return Architecture(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=config.get("num_key_value_heads") or heads,
            kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["max_position_embeddings"],
            norm_epsilon=config["rms_norm_eps"],
            rotary_base=_rope(config)[0],
            tied_embeddings=config.get("tie_word_embeddings", False),
            dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
            rope_scaling=_scaling(_rope(config)[1], path),
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=config.get("eos_token_id"),
        )
    except orjson.JSONDecodeError as error:
        raise UserError(f"is not JSON ({error})", source=path) from None
    except KeyError as error:
        raise UserError(f"lacks {error}", source=path, remedy="is the download complete?") from None


def _refuse_unknown(config: dict[str, Any], path: Path) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise UserError(f"model_type {kind!r} is not supported", source=path, remedy="Llama-shaped models are (Llama, SmolLM2)")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(f"{key} is not supported", source=path)
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act {config['hidden_act']!r} is not supported", source=path, remedy="silu is")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported", source=path, remedy=f"one of {', '.join(_DTYPES)} is")


def _rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """(theta, scaling) from either form: `rope_parameters` of transformers 5, or `rope_theta` with `rope_scaling`."""
    parameters = config.get("rope_parameters") or {}
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    return float(theta), parameters if "rope_type" in parameters else (config.get("rope_scaling") or {})


def _scaling(scaling: dict[str, Any], path: Path) -> Llama3Scaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3" or any(scaling.get(key) != value for key, value in _LLAMA3_FIXED.items()):
        raise UserError(f"rope scaling {scaling} is not supported", source=path, remedy="the default and Llama 3.1's are")
    return Llama3Scaling(float(scaling["factor"]))

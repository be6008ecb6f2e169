"""`run_config.yaml` of a checkpoint_megatron: the model's architecture in Megatron-Bridge's words.

Megatron-Bridge instantiates what the file names; we only read fields, nothing named in it is imported or called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Llama3Scaling

NAME = "run_config.yaml"
_DTYPES = {"torch.bfloat16": "bfloat16", "torch.float32": "float32", "torch.float16": "float16"}


def write(shape: Architecture, folder: Path) -> None:
    """Write the file into a checkpoint's iteration folder."""
    (folder / NAME).write_text(yaml.safe_dump({"model": _provider(shape)}, sort_keys=True))


def read(folder: Path) -> Architecture:
    """The architecture of an iteration folder. Raises UserError where the file is missing, damaged or not Llama-shaped."""
    path = folder / NAME
    try:
        model = yaml.safe_load(path.read_text())["model"]
        _refuse_unknown(model, path)
        return Architecture(
            num_layers=model["num_layers"],
            hidden_size=model["hidden_size"],
            ffn_hidden_size=model["ffn_hidden_size"],
            num_attention_heads=model["num_attention_heads"],
            num_query_groups=model.get("num_query_groups") or model["num_attention_heads"],
            kv_channels=model.get("kv_channels") or model["hidden_size"] // model["num_attention_heads"],
            vocab_size=model["vocab_size"],
            max_position_embeddings=model["seq_length"],
            norm_epsilon=model["layernorm_epsilon"],
            rotary_base=float(model["rotary_base"]),
            tied_embeddings=model["share_embeddings_and_output_weights"],
            dtype=_DTYPES[model["params_dtype"]["_target_"]],
            rope_scaling=Llama3Scaling(float(model["rope_scaling_factor"])) if model.get("rope_scaling") else None,
            bos_token_id=model.get("bos_token_id"),
            eos_token_id=model.get("eos_token_id"),
        )
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy="only checkpoints with a run_config.yaml are read") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"does not describe a model ({type(error).__name__}: {error})".replace("\n", " "), source=path
        ) from None


def _provider(shape: Architecture) -> dict[str, Any]:
    dtype = _symbol(f"torch.{shape.dtype}")
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "activation_func": _symbol("torch.nn.functional.silu"),
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "attention_dropout": 0.0,
        "autocast_dtype": dtype,
        "bf16": shape.dtype == "bfloat16",
        "ffn_hidden_size": shape.ffn_hidden_size,
        "fp16": shape.dtype == "float16",
        "gated_linear_unit": True,
        "hidden_dropout": 0.0,
        "hidden_size": shape.hidden_size,
        "kv_channels": shape.kv_channels,
        "layernorm_epsilon": shape.norm_epsilon,
        "make_vocab_size_divisible_by": 128,
        "normalization": "RMSNorm",
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_layers,
        "num_query_groups": shape.num_query_groups,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "pipeline_model_parallel_size": 1,
        "position_embedding_type": "rope",
        "qk_layernorm": False,
        "rope_scaling": shape.rope_scaling is not None,
        "rope_scaling_factor": shape.rope_scaling.factor if shape.rope_scaling else 1.0,
        "rotary_base": int(shape.rotary_base),
        "rotary_percent": 1.0,
        "seq_length": shape.max_position_embeddings,
        "share_embeddings_and_output_weights": shape.tied_embeddings,
        "should_pad_vocab": False,
        "tensor_model_parallel_size": 1,
        "transformer_layer_spec": _symbol("megatron.bridge.models.gpt_provider.default_layer_spec"),
        "vocab_size": shape.vocab_size,
    }


def _symbol(name: str) -> dict[str, Any]:
    return {"_call_": False, "_target_": name}


def _refuse_unknown(model: dict[str, Any], path: Path) -> None:
    for key, only in (
        ("normalization", "RMSNorm"),
        ("gated_linear_unit", True),
        ("position_embedding_type", "rope"),
        ("add_bias_linear", False),
        ("add_qkv_bias", False),
        ("qk_layernorm", False),
        ("num_moe_experts", None),
    ):
        if model.get(key, only) != only:
            raise UserError(f"{key}: {model[key]!r} is not supported", source=path, remedy="Llama-shaped models are")

"""Writes checkpoints as Megatron-LM does: arguments in the common state, padded vocabulary."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemotron_dpo.sources import resolve

PADDED = 128


def arguments(**changes: Any) -> Namespace:
    """Those of Megatron-LM's hundreds of arguments that matter here, and some of every type that occurs."""
    from megatron.core.transformer.enums import AttnBackend

    values: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 4,
        "group_query_attention": True,
        "num_query_groups": 2,
        "kv_channels": 8,
        "max_position_embeddings": 128,
        "seq_length": 64,
        "padded_vocab_size": PADDED,
        "norm_epsilon": 1e-6,
        "normalization": "RMSNorm",
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "untie_embeddings_and_output_weights": False,
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
        "num_experts": None,
        "moe_layer_freq": 1,
        "moe_router_topk": 2,
        "multi_latent_attention": False,
        "params_dtype": torch.float32,
        "bf16": False,
        "fp16": False,
        "attention_backend": AttnBackend.auto,
        "data_path": ["/data/a", "/data/b"],
        "save": Path("/checkpoints"),
        **changes,
    }
    return Namespace(**values)


def write(llama: Path, root: Path, args: Namespace | None, content: dict, change: Callable[[dict], None] | None = None) -> Path:
    """`llama` with PADDED vocabulary entries as Megatron-LM saves it; the root folder."""
    from megatron.core import dist_checkpointing

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.model import build_policy

    model = open_policy(resolve(llama), None)
    padded = build_policy(replace(model.architecture, vocab_size=PADDED), torch.float32, max_length=128)
    weights = model.state_dict()
    embedding = weights["embedding.word_embeddings.weight"]
    weights["embedding.word_embeddings.weight"] = torch.cat([embedding, torch.full((PADDED - len(embedding), 32), 9.0)])
    padded.load_state_dict(weights, strict=False)
    sharded = {key: value for key, value in padded.sharded_state_dict(metadata=content).items() if "_extra" not in key}
    if change is not None:
        change(sharded)
    state = {"model": sharded, "checkpoint_version": 3.0, "iteration": 5, **({"args": args} if args else {})}
    folder = root / "iter_0000005"
    folder.mkdir(parents=True)
    dist_checkpointing.save(state, str(folder), content_metadata=content or None)
    (root / "latest_checkpointed_iteration.txt").write_text("5\n")
    return root

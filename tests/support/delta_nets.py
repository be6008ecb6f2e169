"""Small random models with gated delta nets, made and run by transformers.

Its chunked rule takes differences of large sums in float32, which costs digits; its own token by token rule, which serves
instead, does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VOCAB = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,  # a head whose query does not meet its own key gives next to nothing at first, which a norm blows up
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
# layers as the models have them, and what else a config may say
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("qwen3_next", {"num_hidden_layers": 4, **EXPERTS}),
    "dense": ("qwen3_next", {"num_hidden_layers": 4, "num_experts": 0}),
    "mixed": (
        "qwen3_next",
        {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
            **EXPERTS,
        },
    ),
    "recurrence": ("qwen3_next", {"num_hidden_layers": 1, "num_experts": 0}),
    "3.5": ("qwen3_5_text", {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}),
    "3.5 experts": (
        "qwen3_5_moe_text",
        {"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"], **EXPERTS},
    ),
}
STATES = (".A_log", ".dt_bias", ".linear_attn.norm.weight")


def write_model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, states: torch.dtype | None = None, **changes: Any
) -> Path:
    """A random model as transformers saves it, `states` the precision of a recurrence's own parameters (None: as `dtype`).

    What transformers sets to one value for all (norms, dt_bias) is random too, or a swap would go unseen. Heads remember a few
    tokens to hundreds: transformers' own first values forget nearly all from token to token.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = MODELS[name]
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings, **changes}))
    for tensor_name, tensor in model.named_parameters():
        if tensor_name.endswith(("A_log", "dt_bias")):
            torch.nn.init.uniform_(tensor, -3, 0)
        elif tensor_name.endswith("linear_attn.norm.weight"):
            torch.nn.init.uniform_(tensor, 0.2, 1.8)
        elif tensor.ndim == 1 or "conv1d" in tensor_name:
            torch.nn.init.normal_(tensor, mean=tensor.mean().item(), std=0.3)
    model.to(dtype).save_pretrained(folder)
    if states is not None:
        tensors = load_file(folder / "model.safetensors")
        wide = {key: tensor.to(states) for key, tensor in tensors.items() if key.endswith(STATES)}
        save_file({**tensors, **wide}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def loaded(folder: Path) -> Iterator[Any]:
    """The model in transformers, float32, which goes through a recurrence token by token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.config.use_cache = False  # transformers has none without an attention layer
    with token_by_token():
        yield model


@contextmanager
def token_by_token() -> Iterator[None]:
    """transformers' models go through a recurrence token by token meanwhile."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as five
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as five_moe
    from transformers.models.qwen3_next import modeling_qwen3_next as next_

    modules: list[Any] = [next_, five, five_moe]
    before = [module.torch_chunk_gated_delta_rule for module in modules]
    for module in modules:
        module.torch_chunk_gated_delta_rule = module.torch_recurrent_gated_delta_rule
    try:
        yield
    finally:
        for module, rule in zip(modules, before, strict=True):
            module.torch_chunk_gated_delta_rule = rule


def logits(folder: Path, ids: Tensor) -> Tensor:
    """float32 logits [S, V] of transformers for the token ids [S]."""
    with loaded(folder) as model, torch.inference_mode():
        return model(ids[None], use_cache=False).logits[0]


def as_in_files(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (or their gradients) of transformers' modules by the names that files have, where an expert has its own."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
        if packed is None:
            found[name] = tensor
            continue
        for number, expert in enumerate(tensor):
            parts = {"down": expert} if packed[2] == "down" else dict(zip(("gate", "up"), expert.chunk(2), strict=True))
            found |= {f"{packed[1]}.{number}.{part}_proj.weight": matrix for part, matrix in parts.items()}
    return found

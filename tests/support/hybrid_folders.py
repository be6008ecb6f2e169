"""Small random hybrids of the family nemotron_h, made and run by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCAB = 96
# of each kind of layers some, alike and not, in orders that models have
PATTERNS = {"dense": "M-M*-M-", "experts": "MEM*EM-E", "recurrence": "M"}
NANO_3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 16,
    "n_groups": 4,
    "chunk_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
STATES = ("A_log", "D", "dt_bias")


def write_hybrid(
    folder: Path, pattern: str, *, dtype: torch.dtype = torch.float32, states: torch.dtype | None = None, **changes: Any
) -> Path:
    """A random hybrid as NVIDIA publishes its: expert biases in float32, `states` that of A_log, D and dt_bias (as `dtype`).

    What transformers sets to one value for all (norms, A_log, biases) is random too, or a swap would go unseen.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(len(pattern))
    config = AutoConfig.for_model("nemotron_h", hybrid_override_pattern=pattern, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.ndim == 1 or "conv1d" in name:
            spread = 0.02 if name.endswith("e_score_correction_bias") else 0.2
            torch.nn.init.normal_(tensor, mean=tensor.float().mean().item(), std=spread)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        kind = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        kind = states if states and name.endswith(STATES) else kind
        tensors[name] = tensor.to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    del written["layers_block_type"], written["mtp_layers_block_type"]
    order = {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}
    written |= {**order, "time_step_limit": [0.0, float("inf")], "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def load(folder: Path) -> Any:
    """The model in transformers, float32, without the bound of time steps that NVIDIA's code and Megatron do not have."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for layer in model.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    return model


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """float32 logits [S, V] of transformers for the token ids [S]."""
    with torch.inference_mode():
        return load(folder)(ids[None], use_cache=False).logits[0]

"""Small random Llama-Nemotron models (DeciLM), put together of transformers' Llama layers, since transformers has none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HIDDEN, HEADS, VOCAB = 32, 4, 96
Block = tuple[int | None, int | None]  # heads that share a key and a value, and feed-forward channels; None has no such part
BLOCKS: tuple[Block, ...] = ((2, 256), (None, 512), (4, 256), (1, None), (None, None), (2, 512))


class Nothing(nn.Module):
    """In the place of a part that a layer does not have."""

    def __init__(self, *, is_attention: bool) -> None:
        super().__init__()
        self.is_attention = is_attention

    def forward(self, hidden_states: Tensor, **_: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.is_attention else nothing


def model(blocks: tuple[Block, ...] = BLOCKS) -> Any:
    """A random model, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    torch.manual_seed(len(blocks))
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "vocab_size": VOCAB,
        "num_hidden_layers": len(blocks),
    }
    config = LlamaConfig(**sizes, intermediate_size=256, max_position_embeddings=256, initializer_range=0.2, rms_norm_eps=1e-5)
    config._attn_implementation = "eager"
    whole = LlamaForCausalLM(config)
    for number, (layer, (together, channels)) in enumerate(zip(whole.model.layers, blocks, strict=True)):
        own = copy.deepcopy(config)
        if together is None:
            layer.input_layernorm, layer.self_attn = nn.Identity(), Nothing(is_attention=True)
        else:
            own.num_key_value_heads = HEADS // together
            layer.self_attn = LlamaAttention(own, number)
        if channels is None:
            layer.post_attention_layernorm, layer.mlp = nn.Identity(), Nothing(is_attention=False)
        else:
            own.intermediate_size = channels
            layer.mlp = LlamaMLP(own)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return whole.eval()


def write(folder: Path, theirs: Any, blocks: tuple[Block, ...] = BLOCKS, dtype: torch.dtype = torch.float32) -> Path:
    """The model as NVIDIA publishes its."""
    folder.mkdir()
    tensors = {name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**said(blocks), "torch_dtype": str(dtype).removeprefix("torch.")}))
    return folder


def said(blocks: tuple[Block, ...] = BLOCKS) -> dict[str, Any]:
    """Its config.json."""
    nothing = {"replace_with_linear": False, "sparsify": None}
    listed = [
        {
            "attention": {**nothing, "n_heads_in_group": together, "no_op": together is None, "window_length": None},
            "ffn": {**nothing, "ffn_mult": channels and 3 * channels / (2 * HIDDEN), "no_op": channels is None},
        }
        for together, channels in blocks
    ]
    return {
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": False,
        "block_configs": listed,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": None,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "nemotron-nas",
        "num_attention_heads": HEADS,
        "num_hidden_layers": len(blocks),
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }

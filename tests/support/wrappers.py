"""Small random multimodal models of every wrapper that is supported, made and run by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from support import delta_nets, families

_TOWER = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_VISION = {"hidden_size": 16, "intermediate_size": 24, **_TOWER}
_QWEN_TOWER = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32}
_DEEP = {**_QWEN_TOWER, "deepstack_visual_indexes": [0]}
_MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]}
_QWEN_IDS: dict[str, Any] = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
_QWEN_3_5 = {**delta_nets.SIZES, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_QWEN_ROPE = {"rope_parameters": {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5}}
# name -> (model_type of the whole, text_config besides SIZES, vision_config, what else the whole says)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "gemma3",
        {**families.FAMILIES["gemma3_text"], "tie_word_embeddings": True},
        {"model_type": "siglip_vision_model", **_VISION},
        {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92},
    ),
    "mistral3, mistral": (
        "mistral3",
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        {"model_type": "pixtral", **_VISION},
        {"image_token_index": 90, "tie_word_embeddings": False},
    ),
    "mistral3, ministral3": (
        "mistral3",
        {"model_type": "ministral3", "tie_word_embeddings": True, **families.FAMILIES["ministral3"]},
        {"model_type": "pixtral", **_VISION},
        {"image_token_index": 90},
    ),
    "qwen3_5": ("qwen3_5", {**_QWEN_3_5, **_QWEN_ROPE}, _QWEN_TOWER, _QWEN_IDS),
    "qwen3_5_moe": ("qwen3_5_moe", {**_QWEN_3_5, **_QWEN_ROPE, **delta_nets.EXPERTS}, _QWEN_TOWER, _QWEN_IDS),
    "qwen2_vl": (
        "qwen2_vl",
        {"rope_parameters": _MROPE},
        {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
        {**_QWEN_IDS, "tie_word_embeddings": True},
    ),
    "qwen2_5_vl": ("qwen2_5_vl", {"rope_parameters": _MROPE}, _QWEN_TOWER, _QWEN_IDS),
    "qwen3_vl": (
        "qwen3_vl",
        {"head_dim": 16, "rope_parameters": {**_MROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
        _DEEP,
        _QWEN_IDS,
    ),
    "llava": (
        "llava",
        {"model_type": "llama", "head_dim": 8},
        {"model_type": "clip_vision_model", **_VISION},
        {"image_token_index": 90},
    ),
    "llava_next": (
        "llava_next",
        {"model_type": "mistral", "sliding_window": 9, "head_dim": 16},
        {"model_type": "siglip_vision_model", **_VISION},
        {"image_token_index": 90, "tie_word_embeddings": False},
    ),
    "internvl": (
        "internvl",
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "internvl_vision", **_VISION},
        {"image_token_id": 90},
    ),
}


def write_model(folder: Path, name: str, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random model as transformers saves it, with a file of its processor; norms and biases are random too."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind, text, vision, beside = MODELS[name]
    torch.manual_seed(len(name))
    sizes = {**families.SIZES, **text, "pad_token_id": 0}  # whose embedding has no gradient in transformers
    config = AutoConfig.for_model(kind, text_config=sizes, vision_config=vision, **beside)
    model = AutoModelForImageTextToText.from_config(config)
    for place, parameter in model.named_parameters():
        if place.endswith(("A_log", "dt_bias")):
            torch.nn.init.uniform_(parameter, -3, 0)
        elif parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.to(dtype).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_resize": true}')
    return folder


@contextmanager
def loaded(folder: Path) -> Iterator[Any]:
    """The whole model in transformers, float32, which goes through a recurrence token by token."""
    from transformers import AutoModelForImageTextToText

    with delta_nets.token_by_token():
        yield AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
